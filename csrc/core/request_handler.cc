#include "core/request_handler.h"

#include <algorithm>

namespace gr2 {
namespace {

using std::chrono::nanoseconds;

nanoseconds& of(Timings& timings, Phase phase) {
  return timings[static_cast<std::size_t>(phase)];
}

// Leaves the admission at the end of a scope, whatever ends it.
class Place {
 public:
  Place(Admission& admission, Call& call) : admission_(admission), call_(call) {}
  ~Place() { admission_.leave(call_, done); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  bool done = false;

 private:
  Admission& admission_;
  Call& call_;
};

// What the work grows with: the items that the model sees.
std::size_t size_of(const Engine& engine, const RequestMessage& request) {
  return std::min(request.history.size(), engine.spec().model.max_history) + request.candidates.size();
}

Outcome admit_and_rank(const Engine& engine, const RequestMessage& request, const Arrival& arrival,
                       Admission& admission, Call& call, Clock::time_point deadline, Timings& timings,
                       std::string& out) {
  const Clock::time_point handed = Clock::now();
  if (!keeps_rules(request, engine.spec().limits)) return Outcome::kInvalid;
  const Clock::time_point checked = Clock::now();
  of(timings, Phase::kParse) = (arrival.parsed - arrival.came) + (checked - handed);
  const Priority priority = request.priority == RequestMessage::kPriorityLow ? Priority::kLow : Priority::kHigh;
  const auto refusal = admission.enter(call, priority, deadline, size_of(engine, request));
  of(timings, Phase::kQueue) = Clock::now() - checked;
  if (refusal) {
    if (!request.fallback || (*refusal != Outcome::kFull && *refusal != Outcome::kLate)) return *refusal;
    of(timings, Phase::kTotal) = Clock::now() - arrival.came;
    write_fallback(request, engine.spec().version, timings, out);
    return Outcome::kFallback;
  }
  Place place(admission, call);
  const Outcome outcome = engine.rank(request, arrival.came, timings, Admission::space(call), out);
  place.done = outcome == Outcome::kAnswered;
  return outcome == Outcome::kAnswered && Clock::now() > deadline ? Outcome::kExpired : outcome;
}

}  // namespace

Outcome handle(const Engine& engine, const RequestMessage& request, const Arrival& arrival, Admission& admission,
               Call& call, Clock::time_point deadline, std::string& out) {
  Timings timings{};
  const Outcome outcome = admit_and_rank(engine, request, arrival, admission, call, deadline, timings, out);
  admission.counters().record(outcome);
  if (outcome == Outcome::kAnswered) admission.counters().record(timings);
  return outcome;
}

}  // namespace gr2
