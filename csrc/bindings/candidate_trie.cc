#include "core/candidate_trie.h"

#include <algorithm>
#include <memory>
#include <string>

#include "bindings/arrays.h"
#include "core/sampling.h"

namespace gr2::bindings {
namespace {

std::shared_ptr<CandidateTrie> build(const py::object& codes, const py::object& known, py::ssize_t level_size) {
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (K, L)", 2);
  const auto flags = require_array<bool>(known, "known", "bool (K,)", 1);
  if (flags.shape(0) != table.shape(0)) {
    throw py::value_error("known must be bool (K,) with K = " + std::to_string(table.shape(0)) + ", got " +
                          describe(flags));
  }
  if (level_size < 1 || level_size > 65536) {
    throw py::value_error("level_size must be 1 to 65536, got " + std::to_string(level_size));
  }
  const std::span flag_bytes(reinterpret_cast<const std::uint8_t*>(flags.data()),
                             static_cast<std::size_t>(flags.size()));
  return std::make_shared<CandidateTrie>(view(table), flag_bytes, static_cast<std::size_t>(table.shape(1)),
                                         static_cast<std::uint32_t>(level_size));
}

py::array_t<std::int64_t> nodes(const CandidateTrie& trie, py::ssize_t depth) {
  if (depth < 1 || depth >= static_cast<py::ssize_t>(trie.levels())) {
    throw py::value_error("depth must be 1 to " + std::to_string(trie.levels() - 1) + ", got " + std::to_string(depth));
  }
  const std::span<const std::uint16_t> codes = trie.nodes(static_cast<std::size_t>(depth));
  py::array_t<std::int64_t> result(static_cast<py::ssize_t>(codes.size()));
  std::copy(codes.begin(), codes.end(), result.mutable_data());
  return result;
}

py::array_t<float> mask(const CandidateTrie& trie) {
  const auto n = static_cast<py::ssize_t>(trie.node_count());
  py::array_t<float> result({n, n});
  const std::span<float> out = mutable_view(result);
  {
    const py::gil_scoped_release release;
    trie.fill_mask(out);
  }
  return result;
}

py::array_t<std::int32_t> parents(const CandidateTrie& trie) {
  const std::span<const std::int32_t> values = trie.parents();
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::array_t<std::int64_t> tokens(const CandidateTrie& trie) {
  py::array_t<std::int64_t> result(static_cast<py::ssize_t>(trie.node_count() - 1));
  trie.fill_tokens(mutable_view(result));
  return result;
}

py::array_t<std::int64_t> ancestors(const CandidateTrie& trie) {
  const auto rows = static_cast<py::ssize_t>(trie.node_count() - 1);
  py::array_t<std::int64_t> result({rows, static_cast<py::ssize_t>(trie.levels() - 1)});
  trie.fill_ancestors(mutable_view(result));
  return result;
}

py::array_t<std::int64_t> counts(const CandidateTrie& trie) {
  py::array_t<std::int64_t> result(static_cast<py::ssize_t>(trie.levels() - 1));
  for (std::size_t depth = 1; depth < trie.levels(); ++depth) {
    result.mutable_at(static_cast<py::ssize_t>(depth - 1)) = static_cast<std::int64_t>(trie.nodes(depth).size());
  }
  return result;
}

py::tuple score(const CandidateTrie& trie, const py::object& logits, const py::object& prior,
                const std::string& normalization) {
  const Normalization kind = require_normalization(normalization);
  const auto rows = static_cast<py::ssize_t>(trie.node_count()), size = static_cast<py::ssize_t>(trie.size());
  const auto columns = static_cast<py::ssize_t>(trie.level_size());
  const auto table = require_array<float>(logits, "logits", "float32 (n, V)", 2, {rows, columns});
  Array<float> bias;
  if (!prior.is_none()) bias = require_array<float>(prior, "prior", "float32 (K,)", 1, {size});
  py::array_t<std::int32_t> order(size);
  py::array_t<float> scores(size);
  const std::span<const float> bias_view = view(bias);
  const std::span<std::int32_t> order_view = mutable_view(order);
  const std::span<float> scores_view = mutable_view(scores);
  {
    const py::gil_scoped_release release;
    trie.score(view(table), bias_view, kind, order_view, scores_view);
  }
  return py::make_tuple(std::move(order), std::move(scores));
}

py::tuple sample(const CandidateTrie& trie, const py::object& scores, std::uint64_t seed, double temperature) {
  const auto size = static_cast<py::ssize_t>(trie.size());
  const auto values = require_array<float>(scores, "scores", "float32 (K,)", 1, {size});
  py::array_t<std::int32_t> order(size);
  py::array_t<float> log_probs(size);
  const std::span<std::int32_t> order_view = mutable_view(order);
  const std::span<float> log_probs_view = mutable_view(log_probs);
  {
    const py::gil_scoped_release release;
    sample_paths(trie, view(values), seed, temperature, order_view, log_probs_view);
  }
  return py::make_tuple(std::move(order), std::move(log_probs));
}

}  // namespace

Normalization require_normalization(const std::string& name) {
  if (name == "raw") return Normalization::kRaw;
  if (name == "local") return Normalization::kLocal;
  throw py::value_error("normalization must be 'raw' or 'local', got '" + name + "'");
}

void bind_candidate_trie(py::module_& module) {
  py::class_<CandidateTrie, std::shared_ptr<CandidateTrie>> type(
      module, "CandidateTrie", py::is_final(), plain_metaclass(),
      "The trie of one request's candidates; its inner nodes are numbered breadth-first.");
  type.def(py::init(&build), py::arg("codes"), py::arg("known"), py::arg("level_size"))
      .def_property_readonly("size", &CandidateTrie::size, "Number of candidates, K.")
      .def_property_readonly("node_count", &CandidateTrie::node_count, "Number of inner nodes with the root, n.")
      .def("nodes", &nodes, py::arg("depth"), "(n_d,) int64: the codes of the inner nodes at depth 1 to L - 1.")
      .def("mask", &mask, "(n, n) float32: 0 where the row's node sees the column's, else a large negative number.")
      .def("parents", &parents, "(n,) int32: the parent of each inner node, -1 for the root.")
      .def("tokens", &tokens, "(n - 1,) int64: level_size * (depth - 1) + code of the inner nodes below the root.")
      .def("counts", &counts, "(L - 1,) int64: how many inner nodes each depth below the root has.")
      .def("ancestors", &ancestors,
           "(n - 1, L - 1) int64: a node's own number, its parent's and so on, without the root; -1 from there on.")
      .def("score", &score, py::arg("logits"), py::arg("prior") = py::none(), py::kw_only(),
           py::arg("normalization") = "raw",
           "Order (K,) int32, best first, and scores (K,) float32 by candidate, from logits (n, V) at the nodes.")
      .def("sample", &sample, py::arg("scores"), py::kw_only(), py::arg("seed"), py::arg("temperature") = 1.0,
           "Order (K,) int32 as drawn without replacement by Gumbel-top-k, and log-probabilities (K,) by candidate.")
      .def_property_readonly("levels", &CandidateTrie::levels, "Codes a candidate has, L.")
      .def_property_readonly("level_size", &CandidateTrie::level_size, "Codes are below this number, V.")
      .def_property_readonly("nbytes", &CandidateTrie::bytes, "Bytes of the trie's arrays.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
