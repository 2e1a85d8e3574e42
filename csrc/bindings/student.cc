#include "core/student.h"

#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <string>

#include "bindings/arrays.h"
#include "core/item_memory.h"

namespace gr2::bindings {
namespace {

Arithmetic require_arithmetic(const std::string& name) {
  if (name == "fp32") return Arithmetic::kFloat;
  if (name == "int8") return Arithmetic::kInt8;
  throw py::value_error("arithmetic must be 'fp32' or 'int8', got '" + name + "'");
}

Encoding require_encoding(const std::string& name) {
  if (name == "item") return Encoding::kItem;
  if (name == "code") return Encoding::kCode;
  throw py::value_error("encoding must be 'item' or 'code', got '" + name + "'");
}

Array<std::uint16_t> require_codes(const py::object& value, const char* name, const Student& student) {
  const auto levels = static_cast<py::ssize_t>(student.levels());
  const auto codes = require_array<std::uint16_t>(value, name, "uint16 (n, L)", 2);
  if (codes.shape(1) != levels) {
    throw py::value_error(std::string(name) + " must have " + std::to_string(levels) + " levels, got " +
                          describe(codes));
  }
  for (const std::uint16_t code : view(codes)) {
    if (code >= student.level_size()) {
      throw py::value_error(std::string(name) + " must be below " + std::to_string(student.level_size()) + ", got " +
                            std::to_string(code));
    }
  }
  return codes;
}

std::shared_ptr<const EncodedHistory> encode(const Student& student, const py::object& codes, const py::object& rows) {
  const auto past = require_codes(codes, "codes", student);
  const auto places = require_array<std::int64_t>(rows, "rows", "int64 (T,)", 1, {past.shape(0)});
  if (past.shape(0) > static_cast<py::ssize_t>(student.max_history())) {
    throw py::value_error("codes must be of at most " + std::to_string(student.max_history()) + " items, got " +
                          describe(past));
  }
  const py::gil_scoped_release release;
  StudentBuffers buffers;
  return student.encode(view(past), view(places), buffers);
}

py::tuple score(const Student& student, const EncodedHistory& encoded, const CandidateTrie& trie,
                const py::object& codes, const py::object& rows, const py::object& features, const py::object& known) {
  const auto count = static_cast<py::ssize_t>(trie.size()), columns = static_cast<py::ssize_t>(ItemMemory::kColumns);
  if (trie.levels() != student.levels() || trie.level_size() != student.level_size()) {
    throw py::value_error("the trie's levels or their size are not the student's");
  }
  if (!student.made(encoded)) throw py::value_error("the history was encoded by another student");
  const auto own = require_codes(codes, "codes", student);
  const auto places = require_array<std::int64_t>(rows, "rows", "int64 (K,)", 1, {count});
  const auto width = static_cast<py::ssize_t>(student.features()) - columns;
  const auto dense = require_array<float>(features, "features", "float32 (K, C)", 2, {count, width});
  const auto memory = require_array<float>(known, "memory", "float32 (K, E)", 2, {count, columns});
  if (own.shape(0) != count) throw py::value_error("codes must have a row for each candidate, got " + describe(own));
  py::array_t<float> logits({static_cast<py::ssize_t>(trie.node_count()), static_cast<py::ssize_t>(trie.level_size())});
  py::array_t<float> prior(count);
  const std::span<float> logits_view = mutable_view(logits), prior_view = mutable_view(prior);
  {
    const py::gil_scoped_release release;
    StudentBuffers buffers;
    student.score(encoded, trie, {view(own), view(places), view(dense), view(memory)}, buffers, logits_view,
                  prior_view);
  }
  return py::make_tuple(std::move(logits), std::move(prior));
}

}  // namespace

void bind_student(py::module_& module) {
  py::class_<EncodedHistory, std::shared_ptr<EncodedHistory>>(module, "EncodedHistory", py::is_final(),
                                                              plain_metaclass(), "What a student makes of a history.")
      .def_property_readonly("nbytes", &EncodedHistory::bytes, "Bytes of its arrays.");
  py::class_<Student, std::shared_ptr<Student>> type(module, "CoreStudent", py::is_final(), plain_metaclass(),
                                                     "The student, computed from its weights.");
  type.def(py::init([](const std::filesystem::path& path, const std::string& arithmetic, const std::string& encoding) {
             const Arithmetic how = require_arithmetic(arithmetic);
             const Encoding token = require_encoding(encoding);
             const py::gil_scoped_release release;
             return std::make_shared<Student>(path.string(), how, token);
           }),
           py::arg("path"), py::arg("arithmetic") = "fp32", py::arg("encoding") = "item")
      .def_property_readonly("levels", &Student::levels, "Codes an item has, L.")
      .def_property_readonly("level_size", &Student::level_size, "Codes are below this number, V.")
      .def_property_readonly("max_history", &Student::max_history, "The most items of a history.")
      .def_property_readonly("features", &Student::features, "Columns of a candidate, those of the memory included.")
      .def_property_readonly("items", &Student::items, "Number of items that have a row of their own.")
      .def("encode", &encode, py::arg("codes"), py::arg("rows"), "The history of codes (T, L) and rows (T,), encoded.")
      .def("score", &score, py::arg("encoded"), py::arg("trie"), py::arg("codes"), py::arg("rows"), py::arg("features"),
           py::arg("memory"), "Logits (n, V) at the trie's inner nodes and prior (K,), both float32.");
  type.attr("MEMORY_COLUMNS") = ItemMemory::kColumns;
  construct_in_new(type);
}

}  // namespace gr2::bindings
