#include "core/generation.h"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

// No method releases the GIL: a step is over before another thread could have taken it, and it guards the state. The
// interpreters without one have the section's lock instead.
using Section = py::scoped_critical_section;

std::unique_ptr<CandidateDecoder> make(std::shared_ptr<CandidateTrie> trie, const std::string& mode, std::uint64_t seed,
                                       double temperature, std::optional<py::ssize_t> top_n) {
  if (mode != "greedy" && mode != "sample") {
    throw py::value_error("mode must be 'greedy' or 'sample', got '" + mode + "'");
  }
  if (top_n && *top_n < 1) throw py::value_error("top_n must be at least 1, got " + std::to_string(*top_n));
  GenerationOptions options;
  options.choice = mode == "greedy" ? Choice::kGreedy : Choice::kSample;
  options.seed = seed;
  options.temperature = temperature;
  if (top_n) options.top_n = static_cast<std::size_t>(*top_n);
  return std::make_unique<CandidateDecoder>(std::move(trie), options);
}

template <typename T>
py::array_t<T> copy(std::span<const T> values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

Array<float> require_row(const CandidateDecoder& decoder, const py::object& logits) {
  const auto columns = static_cast<py::ssize_t>(decoder.trie().level_size());
  return require_array<float>(logits, "logits", "float32 (V,)", 1, {columns});
}

void require_due(const CandidateDecoder& decoder) {
  if (decoder.done()) throw py::value_error("no decision is due: the decoder is done");
}

py::tuple next(const py::object& self) {
  const Section section(self);
  const auto& decoder = self.cast<const CandidateDecoder&>();
  return py::make_tuple(copy(decoder.append()), copy(decoder.allowed()));
}

std::int32_t push(const py::object& self, const py::object& logits, std::size_t row) {
  const Section section(self);
  auto& decoder = self.cast<CandidateDecoder&>();
  const Array<float> values = require_row(decoder, logits);
  require_due(decoder);
  return decoder.push(view(values), row);
}

void accept(const py::object& self, py::ssize_t code, const py::object& logits) {
  const Section section(self);
  auto& decoder = self.cast<CandidateDecoder&>();
  const Array<float> values = logits.is_none() ? Array<float>(0) : require_row(decoder, logits);
  require_due(decoder);
  if (code < 0 || code >= static_cast<py::ssize_t>(decoder.trie().level_size())) {
    throw py::value_error("code must be 0 to " + std::to_string(decoder.trie().level_size() - 1) + ", got " +
                          std::to_string(code));
  }
  decoder.accept(static_cast<std::uint16_t>(code), view(values));
}

void score_forced(const py::object& self, const py::object& logits) {
  const Section section(self);
  auto& decoder = self.cast<CandidateDecoder&>();
  const auto table = require_array<float>(logits, "logits", "float32 (f, V)", 2);
  const auto rows = static_cast<py::ssize_t>(decoder.forced_count());
  const auto columns = static_cast<py::ssize_t>(decoder.trie().level_size());
  if (table.shape(0) != rows || table.shape(1) != columns) {
    throw py::value_error("logits must be float32 (" + std::to_string(rows) + ", " + std::to_string(columns) +
                          "), got " + describe(table));
  }
  decoder.score_forced(view(table));
}

py::array_t<float> item_log_probs(const py::object& self, const std::string& normalization) {
  const Section section(self);
  const auto& decoder = self.cast<const CandidateDecoder&>();
  py::array_t<float> sums(static_cast<py::ssize_t>(decoder.order().size()));
  decoder.item_log_probs(require_normalization(normalization), mutable_view(sums));
  return sums;
}

py::array_t<float> log_probs(const py::object& self, const std::string& normalization) {
  const Section section(self);
  return copy(self.cast<const CandidateDecoder&>().log_probs(require_normalization(normalization)));
}

py::array_t<bool> forced(const py::object& self) {
  const Section section(self);
  const std::span<const std::uint8_t> flags = self.cast<const CandidateDecoder&>().forced();
  return py::array_t<bool>(static_cast<py::ssize_t>(flags.size()), reinterpret_cast<const bool*>(flags.data()));
}

py::array_t<std::int32_t> ranking(const py::object& self, const py::object& scores) {
  const Section section(self);
  const auto& decoder = self.cast<const CandidateDecoder&>();
  const auto size = static_cast<py::ssize_t>(decoder.trie().size());
  Array<float> values(0);
  if (!scores.is_none()) values = require_array<float>(scores, "scores", "float32 (K,)", 1, {size});
  py::array_t<std::int32_t> order(size);
  decoder.ranking(view(values), mutable_view(order));
  return order;
}

template <typename Result>
auto locked(Result (CandidateDecoder::*method)() const) {
  return [method](const py::object& self) {
    const Section section(self);
    return (self.cast<const CandidateDecoder&>().*method)();
  };
}

template <typename T>
auto copied(std::span<const T> (CandidateDecoder::*method)() const) {
  return [method](const py::object& self) {
    const Section section(self);
    return copy((self.cast<const CandidateDecoder&>().*method)());
  };
}

}  // namespace

void bind_candidate_decoder(py::module_& module) {
  py::class_<CandidateDecoder> type(module, "CandidateDecoder", py::is_final(), plain_metaclass(),
                                    "Emits a request's candidates one after the other, each once.");
  type.def(py::init(&make), py::arg("trie").none(false), py::kw_only(), py::arg("mode") = "greedy", py::arg("seed") = 0,
           py::arg("temperature") = 1.0, py::arg("top_n") = py::none())
      .def_property_readonly("done", locked(&CandidateDecoder::done), "True if no decision is due.")
      .def_property_readonly("node", locked(&CandidateDecoder::node), "Node of the coming decision, -1 if none is due.")
      .def_property_readonly("forced_count", locked(&CandidateDecoder::forced_count),
                             "How many of the codes to append are forced.")
      .def_property_readonly("nbytes", locked(&CandidateDecoder::bytes), "Bytes that generation changes.")
      .def_property_readonly("remaining", locked(&CandidateDecoder::remaining),
                             "Known candidates that were not emitted.")
      .def_property_readonly("order", copied(&CandidateDecoder::order), "(m,) int32: the emitted candidates.")
      .def_property_readonly("codes", copied(&CandidateDecoder::codes), "(s,) uint16: every code since the start.")
      .def_property_readonly("forced", &forced, "(s,) bool: the codes that were no decision.")
      .def("next", &next, "Codes to append to the context, and the codes that the coming decision may choose.")
      .def("push", &push, py::arg("logits"), py::kw_only(), py::arg("row") = 0,
           "The chosen code, -1 if all are masked.")
      .def("accept", &accept, py::arg("code"), py::arg("logits") = py::none(), "Take a choice made elsewhere.")
      .def("score_forced", &score_forced, py::arg("logits"), "Take the logits (f, V) of the forced codes to append.")
      .def(
          "stop",
          [](const py::object& self) {
            const Section section(self);
            self.cast<CandidateDecoder&>().stop();
          },
          "Emit nothing more.")
      .def(
          "reset",
          [](const py::object& self, std::uint64_t seed) {
            const Section section(self);
            self.cast<CandidateDecoder&>().reset(seed);
          },
          py::arg("seed") = 0, "Back to the start.")
      .def("log_probs", &log_probs, py::arg("normalization") = "local", "(s,) float32: of every code.")
      .def("item_log_probs", &item_log_probs, py::arg("normalization") = "local", "(m,) float32: of every item.")
      .def("ranking", &ranking, py::arg("scores") = py::none(), "(K,) int32: all candidates.");
  construct_in_new(type);
}

}  // namespace gr2::bindings
