// Checked access to the arrays that Python passes in. Nothing is cast: a wrong dtype or shape is an error.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "core/candidate_trie.h"
#include "core/prefix_cache.h"

namespace gr2::bindings {

namespace py = pybind11;

inline std::string describe(const py::handle& value) {
  if (!py::isinstance<py::array>(value)) return py::str(py::type::of(value).attr("__name__"));
  return std::string(py::str(value.attr("dtype"))) + " " + std::string(py::str(value.attr("shape")));
}

// As Python writes the tuple.
inline std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text;
  for (const py::ssize_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

// An aligned, C-contiguous array of type T; an array with strides is copied into one.
template <typename T>
using Array = py::array_t<T, int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_}>;

// `expected` is, for example, "uint16 (K, L)"; `shape` what it must be, if that is known.
template <typename T>
Array<T> require_array(const py::object& value, const char* name, const std::string& expected, py::ssize_t dimensions,
                       const std::vector<py::ssize_t>& shape = {}) {
  const auto message = [&](const std::string& what) {
    return std::string(name) + " must be " + what + ", got " + describe(value);
  };
  if (!py::isinstance<py::array_t<T>>(value)) throw py::type_error(message(expected));
  const auto given = py::reinterpret_borrow<py::array>(value);
  if (given.ndim() != dimensions) throw py::value_error(message(expected));
  // Before anything is copied: a view may be of any size.
  if (!shape.empty() && !std::equal(shape.begin(), shape.end(), given.shape())) {
    throw py::value_error(message(expected.substr(0, expected.find(' ') + 1) + shape_text(shape)));
  }
  // What needs no copy needs no conversion either, which would take longer than all the rest.
  constexpr int kAsIs = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  if (py::detail::check_flags(value.ptr(), kAsIs)) return py::reinterpret_borrow<Array<T>>(value);
  Array<T> array = Array<T>::ensure(value);
  // All else was checked.
  if (!array) throw std::bad_alloc();
  return array;
}

template <typename T>
std::span<const T> view(const Array<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T, int kFlags>
std::span<T> mutable_view(py::array_t<T, kFlags>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

// `type` itself, so that the classes look to Python, and to type checkers, like any other final class.
inline py::metaclass plain_metaclass() {
  return py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type));
}

// Makes allocation construct, so that no object without a C++ value is ever seen: pybind11 leaves that to __init__,
// which may fail or never be called. The __init__ that Python calls next finds the value and does nothing, and a
// __new__ called by name, which is the base's, is refused.
inline void construct_in_new(const py::handle& type) {
  static const newfunc allocate = reinterpret_cast<PyTypeObject*>(type.ptr())->tp_new;
  reinterpret_cast<PyTypeObject*>(type.ptr())->tp_new = [](PyTypeObject* cls, PyObject* args, PyObject* kwargs) {
    PyObject* self = allocate(cls, args, kwargs);
    if (self != nullptr && cls->tp_init(self, args, kwargs) != 0) Py_CLEAR(self);
    return self;
  };
}

// Throws ValueError unless `name` is "raw" or "local".
Normalization require_normalization(const std::string& name);

// The counts by name.
py::dict describe_counts(const PrefixCache::Counts& counts);

void bind_candidate_decoder(py::module_& module);
void bind_candidate_trie(py::module_& module);
void bind_codebook(py::module_& module);
void bind_catalog_trie(py::module_& module);
void bind_item_memory(py::module_& module);
void bind_prefix_cache(py::module_& module);
void bind_engine(py::module_& module);
void bind_retrieval(py::module_& module);
void bind_simd(py::module_& module);
void bind_student(py::module_& module);

}  // namespace gr2::bindings
