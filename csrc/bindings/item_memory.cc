#include "core/item_memory.h"

#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <string>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

Array<std::uint16_t> require_codes(const py::object& value, const char* name, const ItemMemory& memory) {
  const auto codes = require_array<std::uint16_t>(value, name, "uint16 (n, L)", 2);
  if (codes.shape(1) != static_cast<py::ssize_t>(memory.levels())) {
    throw py::value_error(std::string(name) + " must have " + std::to_string(memory.levels()) + " levels, got " +
                          describe(codes));
  }
  return codes;
}

Array<std::int64_t> require_rows(const py::object& value, const char* name, py::ssize_t count,
                                 const ItemMemory& memory) {
  const auto rows = require_array<std::int64_t>(value, name, "int64 (n,)", 1, {count});
  const auto last = static_cast<std::int64_t>(memory.items());
  for (const std::int64_t row : view(rows)) {
    if (row < 0 || row > last) {
      throw py::value_error(std::string(name) + " must be 0 to " + std::to_string(last) + ", got " +
                            std::to_string(row));
    }
  }
  return rows;
}

py::array_t<std::int64_t> find(const ItemMemory& memory, const py::object& codes) {
  const auto wanted = require_codes(codes, "codes", memory);
  py::array_t<std::int64_t> rows(wanted.shape(0));
  memory.find(view(wanted), mutable_view(rows));
  return rows;
}

py::array_t<float> columns(const ItemMemory& memory, const py::object& past, const py::object& past_codes,
                           const py::object& own, const py::object& own_codes) {
  const auto before = require_codes(past_codes, "past_codes", memory);
  const auto slate = require_codes(own_codes, "own_codes", memory);
  const auto before_rows = require_rows(past, "past", before.shape(0), memory);
  const auto slate_rows = require_rows(own, "own", slate.shape(0), memory);
  py::array_t<float> result({slate.shape(0), static_cast<py::ssize_t>(ItemMemory::kColumns)});
  const std::span<float> out = mutable_view(result);
  {
    const py::gil_scoped_release release;
    memory.columns(view(before_rows), view(before), view(slate_rows), view(slate), out);
  }
  return result;
}

}  // namespace

void bind_item_memory(py::module_& module) {
  py::class_<ItemMemory, std::shared_ptr<ItemMemory>> type(
      module, "ItemMemory", py::is_final(), plain_metaclass(),
      "What is known of pairs of items, looked up for candidates against a history.");
  type.def(py::init([](const std::filesystem::path& path) { return std::make_shared<ItemMemory>(path.string()); }),
           py::arg("path"))
      .def_property_readonly("items", &ItemMemory::items, "Number of items.")
      .def_property_readonly("levels", &ItemMemory::levels, "Codes an item has, L.")
      .def("find", &find, py::arg("codes"), "(n,) int64: the row of the first item that has each of codes (n, L).")
      .def("columns", &columns, py::arg("past"), py::arg("past_codes"), py::arg("own"), py::arg("own_codes"),
           "(K, 25) float32: what is known of each candidate with the history.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
