#include "core/codebook.h"

#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

// The UTF-8 views of a sequence of str. The tuple keeps the strings alive whatever happens to the sequence.
struct Strings {
  py::tuple owner;
  std::vector<std::string_view> views;
};

Strings require_strings(const py::object& value, const char* name) {
  const auto fail = [&](const std::string& got) {
    throw py::type_error(std::string(name) + " must be int64 (n,) or a sequence of str, got " + got);
  };
  const bool refused = py::isinstance<py::str>(value) || py::isinstance<py::bytes>(value);
  if (refused || !py::isinstance<py::sequence>(value)) fail(describe(value));
  Strings result{py::tuple(value), {}};
  result.views.reserve(result.owner.size());
  for (const py::handle item : result.owner) {
    if (!py::isinstance<py::str>(item)) {
      fail(describe(item) + " at " + std::to_string(result.views.size()));
    }
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
    if (text == nullptr) throw py::error_already_set();
    result.views.emplace_back(text, static_cast<std::size_t>(size));
  }
  return result;
}

std::uint32_t require_level_size(py::ssize_t level_size) {
  if (level_size < 1 || level_size > 65536) {
    throw py::value_error("level_size must be 1 to 65536, got " + std::to_string(level_size));
  }
  return static_cast<std::uint32_t>(level_size);
}

void write(const std::filesystem::path& path, const py::object& item_ids, const py::object& codes,
           py::ssize_t level_size) {
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (n, L)", 2);
  const std::uint32_t size = require_level_size(level_size);
  if (table.shape(1) > std::numeric_limits<std::uint32_t>::max()) {
    throw py::value_error("codes must have 1 to 8 levels, got " + std::to_string(table.shape(1)));
  }
  const auto levels = static_cast<std::uint32_t>(table.shape(1));
  const auto check_rows = [&](std::size_t rows) {
    if (static_cast<std::size_t>(table.shape(0)) != rows) {
      throw py::value_error("codes must be uint16 (n, L) with n = " + std::to_string(rows) + ", got " +
                            describe(table));
    }
  };
  if (py::isinstance<py::array>(item_ids)) {
    const auto ids = require_array<std::int64_t>(item_ids, "item_ids", "int64 (n,) or a sequence of str", 1);
    check_rows(static_cast<std::size_t>(ids.size()));
    const py::gil_scoped_release release;
    write_codebook(path, view(ids), view(table), levels, size);
  } else {
    const Strings ids = require_strings(item_ids, "item_ids");
    check_rows(ids.views.size());
    const py::gil_scoped_release release;
    write_codebook(path, std::span(ids.views), view(table), levels, size);
  }
}

py::tuple lookup(const Codebook& codebook, const py::object& ids) {
  const auto answer = [&](auto views) {
    const auto rows = static_cast<py::ssize_t>(views.size());
    py::array_t<std::uint16_t> codes({rows, static_cast<py::ssize_t>(codebook.levels())});
    py::array_t<bool> known(rows);
    const std::span<std::uint16_t> codes_view = mutable_view(codes);
    const std::span known_view(reinterpret_cast<std::uint8_t*>(known.mutable_data()), views.size());
    {
      const py::gil_scoped_release release;
      codebook.lookup(views, codes_view, known_view);
    }
    return py::make_tuple(std::move(codes), std::move(known));
  };
  const auto refuse = [](const char* own, const char* got) {
    throw py::type_error(std::string("ids must be ") + own + ", as in this codebook, got " + got);
  };
  if (py::isinstance<py::array>(ids)) {
    const auto array = require_array<std::int64_t>(ids, "ids", "int64 (n,) or a sequence of str", 1);
    if (!codebook.has_string_ids()) return answer(view(array));
    if (array.size() != 0) refuse("a sequence of str", "int64");
    return answer(std::span<const std::string_view>());
  }
  const Strings strings = require_strings(ids, "ids");
  if (codebook.has_string_ids()) return answer(std::span<const std::string_view>(strings.views));
  if (!strings.views.empty()) refuse("int64 (n,)", "a sequence of str");
  return answer(std::span<const std::int64_t>());
}

}  // namespace

void bind_codebook(py::module_& module) {
  module.def("write_codebook", &write, py::arg("path"), py::arg("item_ids"), py::arg("codes"), py::arg("level_size"),
             "Write a codebook file atomically; its bytes depend on the set of items, not on their order.");
  py::class_<Codebook> type(module, "Codebook", py::is_final(), plain_metaclass(),
                            "The map from item IDs to codes, in a file mapped read-only and shared between processes.");
  type.def(py::init([](const std::filesystem::path& path) {
             const py::gil_scoped_release release;
             return std::make_unique<Codebook>(path.string());
           }),
           py::arg("path"))
      .def_property_readonly("size", &Codebook::size, "Number of items.")
      .def_property_readonly("levels", &Codebook::levels, "Codes an item has, L.")
      .def_property_readonly("level_size", &Codebook::level_size, "Codes are below this number, V.")
      .def_property_readonly(
          "id_type", [](const Codebook& self) { return self.has_string_ids() ? "string" : "int64"; },
          "\"int64\" or \"string\".")
      .def_property_readonly("fingerprint", &Codebook::fingerprint, "32 hex digits that identify the items and codes.")
      .def("__len__", &Codebook::size)
      .def("lookup", &lookup, py::arg("ids"), "Codes (n, L) uint16, 0 for unknown items, and known (n,) bool.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
