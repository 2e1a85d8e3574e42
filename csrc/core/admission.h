// Which requests work now, which wait, and which are refused: a bound on the work, and none of it in vain.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/counters.h"
#include "core/engine.h"
#include "core/service_times.h"

namespace gr2 {

enum class Priority { kHigh, kLow };

// One call's place in the admission. Its members belong to the Admission.
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  // Whether the caller has gone.
  bool cancelled() const { return cancelled_; }

 private:
  friend class Admission;
  enum class State { kOutside, kWaiting, kWorking, kRefused };
  State state_ = State::kOutside;
  std::atomic<bool> cancelled_ = false;
  Outcome refusal_ = Outcome::kFull;
  Priority priority_ = Priority::kHigh;
  std::size_t size_class_ = 0;
  std::shared_ptr<ServiceTimes> times_;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point begun_;
  std::list<Call*>::iterator place_;
  std::unique_ptr<Workspace> space_;
  std::condition_variable changed_;
};

// At most `workers` calls work at once, at most `queue` wait; those of high priority go first, each in the order of
// their arrival. A call is refused at once if the work before it takes longer than a quarter of the time that it has,
// or that and its own longer than all of it; and again when its turn comes, if its time no longer suffices. Where the
// queue is full, a call of high priority takes the place of the last one of low priority. Thread-safe.
class Admission {
 public:
  Admission(std::size_t workers, std::size_t queue);

  std::size_t workers() const { return workers_; }
  std::size_t queue() const { return queue_; }

  // Asks for a worker, without waiting. Returns nothing if the call has one or waits for one, and `wait` must follow;
  // else why it may not. `size` is a measure of its work, as the number of its items, and `times` are those of calls
  // like it; of those that have none, the admission keeps them.
  std::optional<Outcome> ask(Call& call, Priority priority, Clock::time_point deadline, std::size_t size,
                             std::shared_ptr<ServiceTimes> times = nullptr);
  // Returns nothing once the call may work, and `leave` must follow; else why it may not.
  std::optional<Outcome> wait(Call& call);
  // Both.
  std::optional<Outcome> enter(Call& call, Priority priority, Clock::time_point deadline, std::size_t size,
                               std::shared_ptr<ServiceTimes> times = nullptr) {
    if (const auto outcome = ask(call, priority, deadline, size, std::move(times))) return outcome;
    return wait(call);
  }
  // Ends the work. `done` says that it took the time that such work takes.
  void leave(Call& call, bool done);
  // In place of `wait`, or of the work: gives up the place that the call has, if it has one. It stays cancelled.
  void withdraw(Call& call);
  // The caller has gone: a call that waits, or enters later, is refused. From any thread.
  void cancel(Call& call);

  // Memory that nobody else uses while the call works.
  static Workspace& space(Call& call) { return *call.space_; }

  Counters& counters() { return counters_; }
  struct Load {
    std::size_t working = 0, waiting_high = 0, waiting_low = 0;
    std::chrono::nanoseconds expected_wait{};  // of a call of low priority that came now
  };
  Load load() const;

 private:
  using Queue = std::list<Call*>;
  static std::chrono::nanoseconds estimate(const Call& call) { return call.times_->estimate(call.size_class_); }
  std::chrono::nanoseconds work_ahead(Priority priority, Clock::time_point now) const;
  std::optional<Outcome> refusal(const Call& call, Clock::time_point now) const;
  void dispatch(Clock::time_point now);
  void refuse(Call& call, Outcome outcome);
  void end(Call& call, Clock::time_point now);
  Queue& waiting(Priority priority) { return waiting_[static_cast<std::size_t>(priority)]; }

  const std::size_t workers_, queue_;
  mutable std::mutex mutex_;
  std::array<Queue, 2> waiting_;
  std::list<Call*> working_;
  const std::shared_ptr<ServiceTimes> times_ = std::make_shared<ServiceTimes>();
  std::vector<std::unique_ptr<Workspace>> spaces_;
  Counters counters_;
};

}  // namespace gr2
