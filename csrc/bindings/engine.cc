#include "core/engine.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/arrays.h"
#include "core/admission.h"
#include "core/request_handler.h"

namespace gr2::bindings {
namespace {

// Bytes up to which a message is parsed before another thread could have taken the GIL.
constexpr std::size_t kHeldBytes = 16384;

std::string_view view_of(const py::bytes& bytes) {
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

// A message with the bytes that it points into.
struct ParsedRequest {
  explicit ParsedRequest(py::bytes data) : bytes(std::move(data)) {
    const std::string_view text = view_of(bytes);
    arrival.came = Clock::now();
    std::optional<py::gil_scoped_release> release;
    if (text.size() > kHeldBytes) release.emplace();
    valid = message.parse(text);
    arrival.parsed = Clock::now();
  }
  py::bytes bytes;
  RequestMessage message;
  Arrival arrival;
  bool valid = false;
};

std::optional<py::str> bundle(const ParsedRequest& self) {
  if (!self.valid) return std::nullopt;
  return py::str(self.message.bundle.data(), self.message.bundle.size());
}

py::dict fields(const ParsedRequest& self) {
  const auto text = [](std::string_view view) { return py::str(view.data(), view.size()); };
  const auto ids = [&](const ItemIds& each) {
    py::list strings;
    for (const std::string_view view : each.strings) strings.append(text(view));
    return py::make_tuple(each.ints, std::move(strings));
  };
  if (!self.valid) throw py::value_error("the bytes are no request");
  const RequestMessage& message = self.message;
  py::dict found;
  found["request_id"] = text(message.request_id);
  found["history"] = ids(message.history);
  found["candidates"] = ids(message.candidates);
  found["scores"] = message.scores;
  found["features"] = message.features;
  found["top_n"] = message.top_n;
  found["bundle"] = text(message.bundle);
  found["fallback"] = message.fallback;
  found["priority"] = message.priority;
  return found;
}

Clock::time_point deadline_after(std::optional<double> seconds) {
  // Beyond a day it is as good as none, and the sum cannot overflow.
  constexpr double kLongest = 86400.0;
  if (!seconds || !(*seconds < kLongest)) return Clock::time_point::max();
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*seconds));
}

py::tuple ports(const OnnxSession& session) {
  const auto list = [](const std::vector<OnnxSession::Port>& found) {
    py::list all;
    for (const OnnxSession::Port& port : found) all.append(py::make_tuple(port.name, port.type, port.shape));
    return all;
  };
  return py::make_tuple(list(session.inputs()), list(session.outputs()));
}

py::object ports_or_none(const OnnxSession* session) {
  return session == nullptr ? py::object(py::none()) : py::object(ports(*session));
}

py::dict cache_counts(const Engine& engine) {
  return describe_counts(engine.model().cache().counts());
}

std::shared_ptr<Engine> make_engine(std::shared_ptr<OnnxRuntime> runtime, const py::bytes& scorer,
                                    const py::bytes& encoder, std::shared_ptr<Codebook> codebook,
                                    std::shared_ptr<ItemMemory> items, std::shared_ptr<Student> student,
                                    std::size_t max_history, std::size_t columns, const std::string& normalization,
                                    bool takes_candidates, std::size_t most_history, std::size_t most_candidates,
                                    std::size_t feature_width, bool uses_scores, const py::object& rank_features,
                                    const std::string& version, const std::array<std::size_t, 6>& memory,
                                    bool one_layer, std::size_t tokens, int threads, std::size_t cache_bytes) {
  EngineSpec spec;
  spec.model = {codebook->levels(),
                codebook->level_size(),
                max_history,
                columns,
                require_normalization(normalization),
                takes_candidates,
                {memory[0], memory[1], memory[2], memory[3], one_layer, tokens, memory[4], memory[5]}};
  spec.limits = {codebook->has_string_ids(), most_history, most_candidates, feature_width};
  spec.uses_scores = uses_scores;
  spec.version = version;
  const auto rows = static_cast<py::ssize_t>(most_candidates),
             width = static_cast<py::ssize_t>(columns - feature_width);
  const auto table = require_array<float>(rank_features, "rank_features", "float32 (K, R)", 2, {rows, width});
  const std::span<const float> values = view(table);
  spec.rank_features.assign(values.begin(), values.end());
  const Graphs graphs{view_of(scorer), view_of(encoder), std::move(items), std::move(student)};
  const py::gil_scoped_release release;
  return std::make_shared<Engine>(std::move(runtime), graphs, std::move(codebook), std::move(spec), threads,
                                  cache_bytes);
}

py::tuple score(const Engine& engine, const py::object& past, const py::object& codes, const py::object& known,
                const py::object& features) {
  const ModelSpec& spec = engine.model().spec();
  const auto table = require_array<std::uint16_t>(codes, "codes", "uint16 (K, L)", 2);
  const auto rows = table.shape(0), levels = static_cast<py::ssize_t>(spec.levels);
  const auto history = require_array<std::uint16_t>(past, "past", "uint16 (T, L)", 2);
  if (table.shape(1) != levels || history.shape(1) != levels) {
    throw py::value_error("past and codes must have " + std::to_string(levels) + " columns, got " + describe(history) +
                          " and " + describe(table));
  }
  const auto flags = require_array<bool>(known, "known", "bool (K,)", 1, {rows});
  auto columns =
      require_array<float>(features, "features", "float32 (K, C)", 2, {rows, static_cast<py::ssize_t>(spec.columns)});
  const std::span known_view(reinterpret_cast<const std::uint8_t*>(flags.data()), static_cast<std::size_t>(rows));
  py::array_t<std::int32_t> order(rows);
  py::array_t<float> scores(rows);
  const std::span<std::int32_t> order_view = mutable_view(order);
  const std::span<float> scores_view = mutable_view(scores);
  // The model reads its features only.
  const std::span features_view(const_cast<float*>(columns.data()), static_cast<std::size_t>(columns.size()));
  const Slate slate{view(history), view(table), known_view, features_view};
  Clock::time_point began, ended;
  {
    const py::gil_scoped_release release;
    const CandidateTrie trie(slate.codes, slate.known, spec.levels, spec.level_size);
    // Kept by the thread, as a server's workers keep theirs.
    thread_local ModelBuffers buffers;
    engine.model().run(slate, trie, buffers, [&] { began = Clock::now(); });
    ended = Clock::now();
    trie.score(buffers.logits, buffers.prior, spec.normalization, order_view, scores_view);
    buffers.trim();
  }
  const auto nanoseconds = [](Clock::time_point time) { return time.time_since_epoch().count(); };
  return py::make_tuple(std::move(order), std::move(scores), nanoseconds(began), nanoseconds(ended));
}

// A request that has asked for a worker, with all that it points into. Gives its place up if it is dropped.
class StartedRequest {
 public:
  StartedRequest(std::shared_ptr<Engine> engine, const ParsedRequest& request, Admission& admission, Call& call,
                 Clock::time_point deadline, std::shared_ptr<ServiceTimes> times)
      : engine_(std::move(engine)),
        held_{held(request), held(admission), held(call)},
        handler_(*engine_, request.message, request.arrival, admission, call, deadline, std::move(times)) {}
  ~StartedRequest() {
    if (open_) handler_.abandon();
  }
  StartedRequest(const StartedRequest&) = delete;
  StartedRequest& operator=(const StartedRequest&) = delete;

  std::optional<Outcome> start(std::string& out) {
    const auto refusal = handler_.start(out);
    open_ = !refusal;
    return refusal;
  }
  py::tuple finish() {
    if (!std::exchange(open_, false)) throw py::value_error("the request is finished already");
    std::string out;
    Outcome outcome = Outcome::kFailed;
    {
      const py::gil_scoped_release release;
      outcome = handler_.finish(out);
    }
    return py::make_tuple(static_cast<int>(outcome), py::bytes(out));
  }

 private:
  // The Python object that a value lives in.
  template <typename T>
  static py::object held(T& value) {
    return py::cast(&value, py::return_value_policy::reference);
  }

  const std::shared_ptr<Engine> engine_;
  const std::array<py::object, 3> held_;
  RequestHandler handler_;
  bool open_ = false;
};

// Either the started request, or the outcome and what was written.
py::object start(std::shared_ptr<Engine> engine, const ParsedRequest& request, Admission& admission, Call& call,
                 std::optional<double> seconds, std::shared_ptr<ServiceTimes> times) {
  if (!request.valid) return py::make_tuple(static_cast<int>(Outcome::kInvalid), py::bytes());
  auto started = std::make_unique<StartedRequest>(std::move(engine), request, admission, call, deadline_after(seconds),
                                                  std::move(times));
  std::string out;
  std::optional<Outcome> refusal;
  {
    // A refusal is made before another thread could have taken the GIL.
    std::optional<py::gil_scoped_release> release;
    if (view_of(request.bytes).size() > kHeldBytes) release.emplace();
    refusal = started->start(out);
  }
  if (!refusal) return py::cast(std::move(started));
  return py::make_tuple(static_cast<int>(*refusal), py::bytes(out));
}

std::optional<int> enter(Admission& admission, Call& call, std::optional<double> seconds, bool low, std::size_t size,
                         std::shared_ptr<ServiceTimes> times) {
  const Clock::time_point deadline = deadline_after(seconds);
  const py::gil_scoped_release release;
  const auto outcome = admission.enter(call, low ? Priority::kLow : Priority::kHigh, deadline, size, std::move(times));
  return outcome ? std::optional(static_cast<int>(*outcome)) : std::nullopt;
}

void count(Admission& admission, std::size_t outcome, const std::optional<std::array<std::int64_t, kPhases>>& timings) {
  if (outcome >= kOutcomes) throw py::value_error("no outcome " + std::to_string(outcome));
  admission.counters().record(static_cast<Outcome>(outcome));
  if (!timings) return;
  Timings values;
  std::transform(timings->begin(), timings->end(), values.begin(), [](std::int64_t ns) { return Clock::duration(ns); });
  admission.counters().record(values);
}

// Counts as arrays: outcomes, and for each phase its buckets and its sum.
py::dict stats(Admission& admission) {
  const Counters& counters = admission.counters();
  const Admission::Load load = admission.load();
  py::list outcomes, phases;
  for (std::size_t i = 0; i < kOutcomes; ++i) outcomes.append(counters.outcomes(i));
  for (std::size_t i = 0; i < kPhases; ++i) {
    const Histogram& histogram = counters.phase(i);
    py::list buckets;
    for (std::size_t bucket = 0; bucket < Histogram::kBuckets; ++bucket) buckets.append(histogram.count(bucket));
    phases.append(py::make_tuple(buckets, histogram.sum()));
  }
  py::dict all;
  all["outcomes"] = outcomes;
  all["phases"] = phases;
  all["working"] = load.working;
  all["waiting"] = py::make_tuple(load.waiting_high, load.waiting_low);
  all["expected_wait_ns"] = load.expected_wait.count();
  return all;
}

}  // namespace

void bind_engine(py::module_& module) {
  py::register_exception<OnnxError>(module, "OnnxError", PyExc_RuntimeError);
  py::class_<OnnxRuntime, std::shared_ptr<OnnxRuntime>> runtime(
      module, "OnnxRuntime", py::is_final(), plain_metaclass(), "onnxruntime, loaded from its shared library.");
  runtime
      .def(py::init([](const std::filesystem::path& path) {
             const py::gil_scoped_release release;
             return std::make_shared<OnnxRuntime>(path.string());
           }),
           py::arg("path"))
      .def_property_readonly("version", &OnnxRuntime::version, "The library's version.");
  construct_in_new(runtime);
  py::class_<ParsedRequest> request(module, "ParsedRequest", py::is_final(), plain_metaclass(),
                                    "A serialised gr2.v1.RerankRequest, parsed.");
  request.def(py::init<py::bytes>(), py::arg("data"))
      .def_property_readonly("bundle", &bundle, "The name of the bundle; None if the bytes are no request.")
      .def_property_readonly(
          "fallback", [](const ParsedRequest& self) { return self.message.fallback; },
          "Whether it asks for the incoming order in place of a refusal.")
      .def("fields", &fields, "The fields by name; item IDs as integers and strings.");
  construct_in_new(request);
  py::class_<Call> call(module, "Call", py::is_final(), plain_metaclass(), "One call's place in the admission.");
  call.def(py::init<>()).def_property_readonly("cancelled", &Call::cancelled, "Whether the caller has gone.");
  construct_in_new(call);
  py::class_<ServiceTimes, std::shared_ptr<ServiceTimes>> times(
      module, "ServiceTimes", py::is_final(), plain_metaclass(), "How long a bundle's requests take, by their size.");
  times.def(py::init<>());
  construct_in_new(times);
  py::class_<Admission> admission(module, "Admission", py::is_final(), plain_metaclass(),
                                  "Which requests work now, which wait, and which are refused.");
  admission.def(py::init<std::size_t, std::size_t>(), py::arg("workers"), py::arg("queue"))
      .def("enter", &enter, py::arg("call"), py::kw_only(), py::arg("seconds") = py::none(), py::arg("low") = false,
           py::arg("size") = 1, py::arg("times") = py::none(),
           "Wait for a worker: None once the call may work, else the outcome.")
      .def("leave", &Admission::leave, py::arg("call"), py::kw_only(), py::arg("done"), "End the work.")
      .def("cancel", &Admission::cancel, py::arg("call"), "The caller has gone.")
      .def("count", &count, py::arg("outcome"), py::arg("timings") = py::none(),
           "Count a request that was handled in Python; an answered one with its timings in ns.")
      .def("stats", &stats, "Counts since the start, and the load now.");
  construct_in_new(admission);
  py::class_<StartedRequest> started(module, "StartedRequest", py::is_final(), plain_metaclass(),
                                     "A request that has a worker or waits for one.");
  started.def("finish", &StartedRequest::finish, "Wait for the worker: the outcome, and the reply or the reason.");
  py::class_<Engine, std::shared_ptr<Engine>> engine(module, "RequestEngine", py::is_final(), plain_metaclass(),
                                                     "One bundle, answering requests.");
  engine
      .def(py::init(&make_engine), py::arg("runtime"), py::arg("scorer"), py::arg("encoder"), py::arg("codebook"),
           py::arg("items"), py::arg("student"), py::kw_only(), py::arg("max_history"), py::arg("columns"),
           py::arg("normalization"), py::arg("takes_candidates"), py::arg("most_history"), py::arg("most_candidates"),
           py::arg("feature_width"), py::arg("uses_scores"), py::arg("rank_features"), py::arg("version"),
           py::arg("memory"), py::arg("one_layer"), py::arg("tokens"), py::arg("threads") = 1,
           py::arg("cache_bytes") = 0)
      .def_property_readonly(
          "scorer", [](const Engine& self) { return ports_or_none(self.model().scorer()); },
          "The scorer's inputs and outputs, each as name, element type and shape; None for a student.")
      .def_property_readonly(
          "encoder", [](const Engine& self) { return ports_or_none(self.model().encoder()); },
          "The encoder's, likewise; None without one.")
      .def("cache_counts", &cache_counts, "Of the encoded histories: hits, misses, evicted, entries and bytes.")
      .def(
          "clear_cache", [](const Engine& self) { self.model().cache().clear(); }, "Forget the encoded histories.")
      .def("score", &score, py::arg("past"), py::arg("codes"), py::arg("known"), py::arg("features"),
           "Order (K,) int32, scores (K,) float32, and when the model began and ended, in ns.")
      .def("start", &start, py::arg("request"), py::arg("admission"), py::arg("call"), py::kw_only(),
           py::arg("seconds") = py::none(), py::arg("times") = py::none(),
           "The request, once it has asked for a worker; or the outcome, and the reply or the reason.");
  construct_in_new(engine);
}

}  // namespace gr2::bindings
