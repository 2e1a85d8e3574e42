#include "core/codebook.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/arrays.h"
#include "core/codebook_builder.h"

namespace gr2::bindings {
namespace {

// Rows up to which a look-up is over before another thread could have taken the GIL.
constexpr std::size_t kHeldRows = 1024;

// The UTF-8 views of a sequence of str. `owner` keeps the strings alive: a tuple of its own, or, for few strings, the
// list that was passed in, which nobody can change while the GIL is held.
struct Strings {
  py::object owner;
  std::vector<std::string_view> views;
};

Strings require_strings(const py::object& value, const char* name) {
  const auto fail = [&](const std::string& got) {
    throw py::type_error(std::string(name) + " must be int64 (n,) or a sequence of str, got " + got);
  };
  const bool refused = py::isinstance<py::str>(value) || py::isinstance<py::bytes>(value);
  if (refused || !py::isinstance<py::sequence>(value)) fail(describe(value));
  const bool held =
      PyList_CheckExact(value.ptr()) && static_cast<std::size_t>(PyList_GET_SIZE(value.ptr())) <= kHeldRows;
  Strings result{held ? value : py::tuple(value), {}};
  PyObject** items = PySequence_Fast_ITEMS(result.owner.ptr());
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(result.owner.ptr());
  // The letters of strings made long ago are in no cache: all are asked for before the first is read.
  for (Py_ssize_t i = 0; i < count; ++i) {
    __builtin_prefetch(items[i]);
    __builtin_prefetch(reinterpret_cast<const char*>(items[i]) + sizeof(PyASCIIObject));
  }
  result.views.resize(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!PyUnicode_Check(items[i])) fail(describe(items[i]) + " at " + std::to_string(i));
    Py_ssize_t size = 0;
    const char* text = nullptr;
    if (PyUnicode_IS_COMPACT_ASCII(items[i])) {
      text = static_cast<const char*>(PyUnicode_DATA(items[i]));
      size = PyUnicode_GET_LENGTH(items[i]);
    } else {
      text = PyUnicode_AsUTF8AndSize(items[i], &size);
      if (text == nullptr) throw py::error_already_set();
    }
    result.views[static_cast<std::size_t>(i)] = {text, static_cast<std::size_t>(size)};
  }
  return result;
}

// The core refuses what is out of its range; here a number only has to arrive as what it is.
std::uint32_t require_uint32(std::int64_t value, const std::string& message) {
  if (value < 0 || value > std::numeric_limits<std::uint32_t>::max()) {
    throw py::value_error(message + ", got " + std::to_string(value));
  }
  return static_cast<std::uint32_t>(value);
}

std::unique_ptr<CodebookBuilder> make_builder(const std::filesystem::path& path, std::int64_t levels,
                                              std::int64_t level_size, const std::string& id_type,
                                              std::size_t memory_bytes,
                                              const std::optional<std::filesystem::path>& scratch) {
  if (id_type != "int64" && id_type != "string") {
    throw py::value_error("id_type must be 'int64' or 'string', got '" + id_type + "'");
  }
  return std::make_unique<CodebookBuilder>(
      CodebookPlan{path.string(), require_uint32(levels, "codes must have 1 to 8 levels"),
                   require_uint32(level_size, "level_size must be 1 to 65536"), id_type == "string", memory_bytes,
                   scratch ? scratch->string() : std::string()});
}

void add(CodebookBuilder& builder, const py::object& item_ids, const py::object& codes) {
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (n, L)", 2);
  const auto take = [&](auto ids) {
    const auto levels = static_cast<py::ssize_t>(builder.plan().levels);
    if (static_cast<std::size_t>(table.shape(0)) != ids.size() || table.shape(1) != levels) {
      throw py::value_error("codes must be uint16 (n, L) with n = " + std::to_string(ids.size()) +
                            " and L = " + std::to_string(levels) + ", got " + describe(table));
    }
    std::optional<py::gil_scoped_release> release;
    if (ids.size() > kHeldRows) release.emplace();
    builder.add(ids, view(table));
  };
  if (py::isinstance<py::array>(item_ids)) {
    const auto ids = require_array<std::int64_t>(item_ids, "item_ids", "int64 (n,) or a sequence of str", 1);
    take(view(ids));
  } else {
    const Strings ids = require_strings(item_ids, "item_ids");
    take(std::span<const std::string_view>(ids.views));
  }
}

py::tuple lookup(const Codebook& codebook, const py::object& ids) {
  const auto answer = [&](auto views) {
    const auto rows = static_cast<py::ssize_t>(views.size());
    py::array_t<std::uint16_t> codes({rows, static_cast<py::ssize_t>(codebook.levels())});
    py::array_t<bool> known(rows);
    const std::span<std::uint16_t> codes_view = mutable_view(codes);
    const std::span known_view(reinterpret_cast<std::uint8_t*>(known.mutable_data()), views.size());
    std::optional<py::gil_scoped_release> release;
    if (views.size() > kHeldRows) release.emplace();
    codebook.lookup(views, codes_view, known_view);
    release.reset();
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

py::tuple items(const Codebook& codebook, const py::object& codes) {
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (n, L)", 2);
  if (table.shape(1) != static_cast<py::ssize_t>(codebook.levels())) {
    throw py::value_error("codes must be uint16 (n, L) with L = " + std::to_string(codebook.levels()) + ", got " +
                          describe(table));
  }
  const Codebook::Items found = [&] {
    const py::gil_scoped_release release;
    return codebook.items(view(table));
  }();
  py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(found.offsets.size()));
  std::copy(found.offsets.begin(), found.offsets.end(), offsets.mutable_data());
  if (codebook.has_string_ids()) {
    py::list ids;
    for (const std::uint64_t slot : found.slots) ids.append(py::str(std::string(codebook.string_id(slot))));
    return py::make_tuple(std::move(offsets), std::move(ids));
  }
  py::array_t<std::int64_t> ids(static_cast<py::ssize_t>(found.slots.size()));
  std::transform(found.slots.begin(), found.slots.end(), ids.mutable_data(),
                 [&](std::uint64_t slot) { return codebook.int64_id(slot); });
  return py::make_tuple(std::move(offsets), std::move(ids));
}

}  // namespace

void bind_codebook(py::module_& module) {
  py::class_<CodebookBuilder> builder(module, "CodebookBuilder", py::is_final(), plain_metaclass(),
                                      "Writes a codebook file of any number of items in bounded memory.");
  builder
      .def(py::init(&make_builder), py::arg("path"), py::kw_only(), py::arg("levels"), py::arg("level_size"),
           py::arg("id_type"), py::arg("memory_bytes") = std::size_t{256} << 20, py::arg("scratch") = py::none())
      .def_property_readonly("size", &CodebookBuilder::size, "Items added so far.")
      .def("add", &add, py::arg("item_ids"), py::arg("codes"), "Take items, in any order and any number of parts.")
      .def("finish", &CodebookBuilder::finish, py::call_guard<py::gil_scoped_release>(), "Write the file atomically.");
  construct_in_new(builder);
  py::class_<Codebook, std::shared_ptr<Codebook>> type(
      module, "Codebook", py::is_final(), plain_metaclass(),
      "The map between item IDs and codes, in a file mapped read-only and shared between processes.");
  type.def(py::init([](const std::filesystem::path& path) {
             const py::gil_scoped_release release;
             return std::make_shared<Codebook>(path.string());
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
      .def("lookup", &lookup, py::arg("ids"), "Codes (n, L) uint16, 0 for unknown items, and known (n,) bool.")
      .def("items", &items, py::arg("codes"), "The items that have the codes of each row, as offsets and IDs.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
