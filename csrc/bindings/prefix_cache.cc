#include "core/prefix_cache.h"

#include <memory>
#include <random>
#include <string>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

std::shared_ptr<PrefixCache> build(py::ssize_t capacity) {
  if (capacity < 0) throw py::value_error("capacity must not be negative, got " + std::to_string(capacity));
  std::random_device random;
  return std::make_shared<PrefixCache>(static_cast<std::size_t>(capacity), std::uint64_t{random()} << 32 | random());
}

py::object find(PrefixCache& cache, const py::bytes& key) {
  const PrefixCache::Value value = cache.find(std::string_view(key));
  return value ? *static_cast<const py::object*>(value.get()) : py::none();
}

void insert(PrefixCache& cache, const py::bytes& key, py::object value, py::ssize_t size) {
  if (size < 0) throw py::value_error("size must not be negative, got " + std::to_string(size));
  const auto release = [](const py::object* object) {
    const py::gil_scoped_acquire acquire;
    delete object;
  };
  cache.insert(std::string_view(key), PrefixCache::Value(new py::object(std::move(value)), release),
               static_cast<std::size_t>(size));
}

}  // namespace

py::dict describe_counts(const PrefixCache::Counts& counts) {
  py::dict result;
  result["hits"] = counts.hits;
  result["misses"] = counts.misses;
  result["evicted"] = counts.evicted;
  result["entries"] = counts.entries;
  result["bytes"] = counts.bytes;
  return result;
}

void bind_prefix_cache(py::module_& module) {
  py::class_<PrefixCache, std::shared_ptr<PrefixCache>> type(
      module, "PrefixCache", py::is_final(), plain_metaclass(),
      "Values by key in bounded memory; the least recently used go first.");
  type.def(py::init(&build), py::arg("capacity"))
      .def("find", &find, py::arg("key"), "The value of a key, None if there is none.")
      .def("insert", &insert, py::arg("key"), py::arg("value"), py::arg("size"), "Keep a value of `size` bytes.")
      .def("clear", &PrefixCache::clear, "Drop every entry.")
      .def(
          "counts", [](const PrefixCache& self) { return describe_counts(self.counts()); },
          "Hits, misses, evicted, entries and bytes.")
      .def_property_readonly("capacity", &PrefixCache::capacity, "Bytes that it holds at most.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
