#include "core/retrieval.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

using Filters = std::vector<std::shared_ptr<const ItemFilter>>;

std::unique_ptr<Retriever> make(std::int64_t beams, const std::string& normalization) {
  if (normalization != "raw" && normalization != "local")
    throw py::value_error("normalization must be 'raw' or 'local', got '" + normalization + "'");
  if (beams < 1) throw py::value_error("beams must be 1 to 4096, got " + std::to_string(beams));
  return std::make_unique<Retriever>(static_cast<std::size_t>(beams),
                                     normalization == "raw" ? Normalization::kRaw : Normalization::kLocal);
}

Filters require_filters(const py::object& value) {
  const auto one = [](const py::handle& each, const std::string& name) -> std::shared_ptr<const ItemFilter> {
    if (each.is_none()) return nullptr;
    if (!py::isinstance<ItemFilter>(each))
      throw py::type_error(name + " must be ItemFilter or None, got " + describe(each));
    return each.cast<std::shared_ptr<ItemFilter>>();
  };
  if (value.is_none()) return {};
  if (py::isinstance<ItemFilter>(value)) return {one(value, "filters")};
  if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value))
    throw py::type_error("filters must be None, an ItemFilter or a sequence of those, got " + describe(value));
  Filters filters;
  for (const py::handle each : value) filters.push_back(one(each, "filters " + std::to_string(filters.size())));
  return filters;
}

void start(Retriever& self, const std::shared_ptr<CatalogTrie>& trie, std::int64_t batch, const py::object& filters) {
  if (batch < 1) throw py::value_error("batch must be 1 to 65536, got " + std::to_string(batch));
  Filters permitted = require_filters(filters);
  if (permitted.empty() && !filters.is_none()) throw py::value_error("filters must not be an empty sequence");
  const py::gil_scoped_release release;
  self.start(trie, static_cast<std::size_t>(batch), std::move(permitted));
}

// As pybind11's constructor, without the lists of the shape and the strides that it makes first.
template <typename T>
py::array_t<T> table(std::size_t rows, std::size_t columns) {
  const auto& numpy = py::detail::npy_api::get();
  const Py_intptr_t shape[] = {static_cast<Py_intptr_t>(rows), static_cast<Py_intptr_t>(columns)};
  PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype::of<T>().release().ptr(), 2, shape,
                                                nullptr, nullptr, 0, nullptr);
  if (array == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::array_t<T>>(array);
}

py::tuple step(Retriever& self, const py::object& logits) {
  const auto values = require_array<float>(logits, "logits", "float32 (B, M, V)", 3);
  const auto extent = [&](py::ssize_t axis) { return static_cast<std::size_t>(values.shape(axis)); };
  const LogitsView given{view(values), extent(0), extent(1), extent(2)};
  const std::size_t batch = self.batch(), beams = self.beams();
  auto parents = table<std::int64_t>(batch, beams), codes = table<std::int64_t>(batch, beams);
  auto scores = table<float>(batch, beams);
  const std::span<std::int64_t> parents_view = mutable_view(parents), codes_view = mutable_view(codes);
  const std::span<float> scores_view = mutable_view(scores);
  {
    const py::gil_scoped_release release;
    self.step(given, parents_view, codes_view, scores_view);
  }
  return py::make_tuple(std::move(parents), std::move(codes), std::move(scores));
}

py::tuple finish(const Retriever& self) {
  const std::size_t batch = self.batch(), beams = self.beams();
  auto items = table<std::int64_t>(batch, beams);
  auto scores = table<float>(batch, beams);
  const std::span<std::int64_t> items_view = mutable_view(items);
  const std::span<float> scores_view = mutable_view(scores);
  {
    const py::gil_scoped_release release;
    self.finish(items_view, scores_view);
  }
  return py::make_tuple(std::move(items), std::move(scores));
}

py::array_t<std::uint16_t> paths(const Retriever& self) {
  const auto extent = [](std::size_t size) { return static_cast<py::ssize_t>(size); };
  py::array_t<std::uint16_t> result({extent(self.batch()), extent(self.width()), extent(self.level())});
  const std::span<std::uint16_t> view = mutable_view(result);
  {
    const py::gil_scoped_release release;
    self.paths(view);
  }
  return result;
}

py::array_t<std::int64_t> nodes(const Retriever& self) {
  auto result = table<std::int64_t>(self.batch(), self.width());
  const std::span<std::int64_t> view = mutable_view(result);
  {
    const py::gil_scoped_release release;
    self.nodes(view);
  }
  return result;
}

}  // namespace

void bind_retrieval(py::module_& module) {
  py::class_<Retriever> type(module, "Retriever", py::is_final(), plain_metaclass(),
                             "Beam search over a catalogue's trie that owns its state.");
  type.def(py::init(&make), py::arg("beams"), py::kw_only(), py::arg("normalization") = "raw")
      .def("start", &start, py::arg("trie").none(false), py::arg("batch") = 1, py::kw_only(),
           py::arg("filters") = py::none(), "Begin anew, on a trie that the search keeps until the next start.")
      .def("step", &step, py::arg("logits"), "Choose the next level's beams: parents, codes and scores, each (B, M).")
      .def("finish", &finish, "The best items and their scores, each (B, M).")
      .def("paths", &paths, "(B, M, level) uint16: the codes on the beams' paths so far, zeros of dead ones.")
      .def("nodes", &nodes, "(B, M) int64: the beams' nodes, -1 of dead ones.")
      .def_property_readonly("beams", &Retriever::beams, "Beams of each search, M.")
      .def_property_readonly("batch", &Retriever::batch, "Searches side by side, B; 0 before the first start.")
      .def_property_readonly("level", &Retriever::level, "Levels done.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
