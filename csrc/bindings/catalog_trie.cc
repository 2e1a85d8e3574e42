#include "core/catalog_trie.h"

#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "bindings/arrays.h"
#include "core/item_filter.h"

namespace gr2::bindings {
namespace {

// Python only sees const methods.
template <typename T>
std::shared_ptr<T> held(std::shared_ptr<const T> value) {
  return std::const_pointer_cast<T>(std::move(value));
}

std::shared_ptr<CatalogTrie> build(const py::object& codes, std::int64_t level_size) {
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (N, L)", 2);
  if (level_size < 1 || level_size > 65536)
    throw py::value_error("level_size must be 1 to 65536, got " + std::to_string(level_size));
  const std::span<const std::uint16_t> values = view(table);
  const auto levels = static_cast<std::size_t>(table.shape(1));
  const py::gil_scoped_release release;
  return held(CatalogTrie::build(values, levels, static_cast<std::uint32_t>(level_size)));
}

py::tuple level(const CatalogTrie& trie, py::ssize_t depth) {
  if (depth < 0 || depth >= static_cast<py::ssize_t>(trie.levels())) {
    throw py::value_error("level must be 0 to " + std::to_string(trie.levels() - 1) + ", got " + std::to_string(depth));
  }
  const auto index = static_cast<std::size_t>(depth);
  const std::uint64_t nodes = trie.node_count(index), edges = trie.node_count(index + 1);
  py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(nodes + 1));
  py::array_t<std::uint16_t> codes(static_cast<py::ssize_t>(edges));
  const std::span<std::int64_t> ends = mutable_view(offsets);
  const std::span<std::uint16_t> values = mutable_view(codes);
  {
    const py::gil_scoped_release release;
    ends[0] = 0;
    for (std::uint64_t node = 0; node < nodes; ++node)
      ends[node + 1] = static_cast<std::int64_t>(trie.below(index, node).end);
    for (std::uint64_t edge = 0; edge < edges; ++edge) values[edge] = trie.code(index, edge);
  }
  return py::make_tuple(std::move(offsets), std::move(codes));
}

py::array_t<std::int64_t> item_offsets(const CatalogTrie& trie) {
  const std::uint64_t leaves = trie.node_count(trie.levels());
  py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(leaves + 1));
  const std::span<std::int64_t> ends = mutable_view(offsets);
  ends[0] = 0;
  for (std::uint64_t leaf = 0; leaf < leaves; ++leaf)
    ends[leaf + 1] = static_cast<std::int64_t>(trie.below(trie.levels(), leaf).end);
  return offsets;
}

std::shared_ptr<ItemFilter> make_filter(const std::shared_ptr<CatalogTrie>& trie, const py::object& allow,
                                        const py::object& deny) {
  const auto rows = [](const py::object& value, const char* name) {
    return value.is_none() ? Array<std::int64_t>()
                           : require_array<std::int64_t>(value, name, "int64 (n,) of item rows", 1);
  };
  const Array<std::int64_t> allowed = rows(allow, "allow"), denied = rows(deny, "deny");
  std::optional<std::span<const std::int64_t>> only;
  if (!allow.is_none()) only = view(allowed);
  const std::span<const std::int64_t> never = view(denied);
  const py::gil_scoped_release release;
  return std::make_shared<ItemFilter>(trie, only, never);
}

}  // namespace

void bind_catalog_trie(py::module_& module) {
  py::class_<CatalogTrie, std::shared_ptr<CatalogTrie>> trie(
      module, "CatalogTrie", py::is_final(), plain_metaclass(),
      "The trie of a whole catalogue; items are the rows of its sorted codes. Immutable.");
  trie.def(py::init(&build), py::arg("codes"), py::arg("level_size"))
      .def_static(
          "open",
          [](const std::filesystem::path& path) {
            const py::gil_scoped_release release;
            return held(CatalogTrie::open(path.string()));
          },
          py::arg("path"), "Map the file and check all of it.")
      .def(
          "save", [](const CatalogTrie& self, const std::filesystem::path& path) { self.save(path.string()); },
          py::arg("path"), py::call_guard<py::gil_scoped_release>(), "Write the file atomically.")
      .def_property_readonly("size", &CatalogTrie::size, "Number of items, N.")
      .def_property_readonly("levels", &CatalogTrie::levels, "Codes an item has, L.")
      .def_property_readonly("level_size", &CatalogTrie::level_size, "Codes are below this number, V.")
      .def_property_readonly("byte_size", &CatalogTrie::byte_size, "Bytes of the whole index.")
      .def("__len__", &CatalogTrie::size)
      .def("level", &level, py::arg("level"), "The children of each node at a depth, as offsets and codes.")
      .def("item_offsets", &item_offsets, "(leaves + 1,) int64: leaf i holds the items offsets[i] to offsets[i + 1].");
  construct_in_new(trie);
  py::class_<ItemFilter, std::shared_ptr<ItemFilter>> filter(module, "ItemFilter", py::is_final(), plain_metaclass(),
                                                             "Which items of a catalogue a search may return.");
  filter
      .def(py::init(&make_filter), py::arg("trie").none(false), py::kw_only(), py::arg("allow") = py::none(),
           py::arg("deny") = py::none())
      .def_property_readonly("size", &ItemFilter::size, "Number of items that may be returned.")
      .def("__len__", &ItemFilter::size);
  construct_in_new(filter);
}

}  // namespace gr2::bindings
