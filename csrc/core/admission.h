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
#include <vector>

#include "core/counters.h"
#include "core/engine.h"

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
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point begun_;
  std::list<Call*>::iterator place_;
  std::unique_ptr<Workspace> space_;
  std::condition_variable changed_;
};

// How long requests of a size took of late: a moving average for each power of two.
class ServiceTimes {
 public:
  static constexpr std::size_t kClasses = 24;
  static std::size_t size_class(std::size_t size);
  // Of sizes not seen yet, as the next smaller one's would grow, or else as the next larger one's; 0 before the first.
  std::chrono::nanoseconds estimate(std::size_t size_class) const;
  void record(std::size_t size_class, std::chrono::nanoseconds taken);
  // A request was refused for how long it would take: some day one is let in again, to see whether that still holds.
  void doubt(std::size_t size_class) {
    means_[size_class] = kDoubt * static_cast<double>(estimate(size_class).count());
  }

 private:
  static constexpr double kDoubt = 0.99;
  std::array<double, kClasses> means_{};  // nanoseconds, 0 for none yet
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
  // else why it may not. `size` is a measure of its work, as the number of its items.
  std::optional<Outcome> ask(Call& call, Priority priority, Clock::time_point deadline, std::size_t size);
  // Returns nothing once the call may work, and `leave` must follow; else why it may not.
  std::optional<Outcome> wait(Call& call);
  // Both.
  std::optional<Outcome> enter(Call& call, Priority priority, Clock::time_point deadline, std::size_t size) {
    if (const auto outcome = ask(call, priority, deadline, size)) return outcome;
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
  ServiceTimes times_;
  std::vector<std::unique_ptr<Workspace>> spaces_;
  Counters counters_;
};

}  // namespace gr2
