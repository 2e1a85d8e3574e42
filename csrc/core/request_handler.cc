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

}  // namespace

std::optional<Outcome> RequestHandler::start(std::string& out) {
  const Clock::time_point handed = Clock::now();
  if (!keeps_rules(request_, engine_.spec().limits)) return count(Outcome::kInvalid);
  asked_ = Clock::now();
  of(timings_, Phase::kParse) = (arrival_.parsed - arrival_.came) + (asked_ - handed);
  const Priority priority = request_.priority == RequestMessage::kPriorityLow ? Priority::kLow : Priority::kHigh;
  const std::size_t size = size_of(engine_, request_);
  if (const auto outcome = admission_.ask(call_, priority, deadline_, size, std::move(times_))) {
    return refused(*outcome, out);
  }
  return std::nullopt;
}

Outcome RequestHandler::finish(std::string& out) {
  if (const auto outcome = admission_.wait(call_)) return refused(*outcome, out);
  Place place(admission_, call_);
  const Clock::time_point begun = Clock::now();
  of(timings_, Phase::kQueue) = begun - asked_;
  if (call_.cancelled()) return count(Outcome::kCancelled);
  if (begun >= deadline_) return count(Outcome::kExpired);
  const Outcome outcome = engine_.rank(request_, arrival_.came, timings_, Admission::space(call_), out);
  place.done = outcome == Outcome::kAnswered;
  return count(outcome == Outcome::kAnswered && Clock::now() > deadline_ ? Outcome::kExpired : outcome);
}

void RequestHandler::abandon() {
  admission_.withdraw(call_);
  count(Outcome::kCancelled);
}

Outcome RequestHandler::refused(Outcome outcome, std::string& out) {
  if (!request_.fallback || (outcome != Outcome::kFull && outcome != Outcome::kLate)) return count(outcome);
  const Clock::time_point now = Clock::now();
  of(timings_, Phase::kQueue) = now - asked_;
  of(timings_, Phase::kTotal) = now - arrival_.came;
  write_fallback(request_, engine_.spec().version, timings_, out);
  return count(Outcome::kFallback);
}

Outcome RequestHandler::count(Outcome outcome) {
  admission_.counters().record(outcome);
  if (outcome == Outcome::kAnswered) admission_.counters().record(timings_);
  return outcome;
}

}  // namespace gr2
