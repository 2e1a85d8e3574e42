#include "core/admission.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace gr2 {
namespace {

using std::chrono::nanoseconds;

// Of the time that a call has, the share that it may wait. The rest is for its own work, for its way back, and for work
// that takes longer than it did of late. A longer queue answers no more calls, only later.
constexpr double kMostWait = 0.25;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

}  // namespace

Admission::Admission(std::size_t workers, std::size_t queue) : workers_(workers), queue_(queue) {
  if (workers == 0) throw std::invalid_argument("workers must be at least 1, got 0");
  for (std::size_t i = 0; i < workers; ++i) spaces_.push_back(std::make_unique<Workspace>());
}

nanoseconds Admission::work_ahead(Priority priority, Clock::time_point now) const {
  nanoseconds work{};
  for (const Call* const call : working_) {
    work += std::max(nanoseconds{}, estimate(*call) - (now - call->begun_));
  }
  for (std::size_t i = 0; i <= static_cast<std::size_t>(priority); ++i) {
    for (const Call* const call : waiting_[i]) work += estimate(*call);
  }
  return work / static_cast<std::int64_t>(workers_);
}

std::optional<Outcome> Admission::refusal(const Call& call, Clock::time_point now) const {
  if (call.cancelled_) return Outcome::kCancelled;
  if (call.deadline_ == Clock::time_point::max()) return std::nullopt;
  if (call.deadline_ <= now) return Outcome::kExpired;
  const nanoseconds left = call.deadline_ - now, own = estimate(call);
  const bool waits = call.state_ == Call::State::kOutside && working_.size() == workers_;
  const nanoseconds wait = waits ? work_ahead(call.priority_, now) : nanoseconds{};
  const bool late =
      wait + own > left || static_cast<double>(wait.count()) > kMostWait * static_cast<double>(left.count());
  return late ? std::optional(Outcome::kLate) : std::nullopt;
}

std::optional<Outcome> Admission::ask(Call& call, Priority priority, Clock::time_point deadline, std::size_t size,
                                      std::shared_ptr<ServiceTimes> times) {
  const std::lock_guard lock(mutex_);
  require(call.state_ == Call::State::kOutside, "the call has asked already");
  const Clock::time_point now = Clock::now();
  call.priority_ = priority;
  call.deadline_ = deadline;
  call.size_class_ = ServiceTimes::size_class(size);
  call.times_ = times != nullptr ? std::move(times) : times_;
  if (const auto outcome = refusal(call, now)) {
    // Not where its wait alone would be too long: the work before it tells its own time when it ends.
    if (*outcome == Outcome::kLate && estimate(call) > deadline - now) call.times_->doubt(call.size_class_);
    return outcome;
  }
  if (working_.size() == workers_ && waiting_[0].size() + waiting_[1].size() >= queue_) {
    Queue& low = waiting(Priority::kLow);
    if (priority == Priority::kLow || low.empty()) return Outcome::kFull;
    refuse(*low.back(), Outcome::kFull);
  }
  call.state_ = Call::State::kWaiting;
  Queue& queue = waiting(priority);
  call.place_ = queue.insert(queue.end(), &call);
  dispatch(now);
  return std::nullopt;
}

std::optional<Outcome> Admission::wait(Call& call) {
  std::unique_lock lock(mutex_);
  require(call.state_ != Call::State::kOutside, "the call has not asked");
  const auto decided = [&] { return call.state_ != Call::State::kWaiting; };
  if (call.deadline_ == Clock::time_point::max()) {
    call.changed_.wait(lock, decided);
  } else if (!call.changed_.wait_until(lock, call.deadline_, decided)) {
    refuse(call, Outcome::kExpired);
  }
  if (call.state_ == Call::State::kWorking) return std::nullopt;
  call.state_ = Call::State::kOutside;
  return call.refusal_;
}

void Admission::refuse(Call& call, Outcome outcome) {
  waiting(call.priority_).erase(call.place_);
  call.state_ = Call::State::kRefused;
  call.refusal_ = outcome;
  call.changed_.notify_one();
}

void Admission::dispatch(Clock::time_point now) {
  for (Queue& queue : waiting_) {
    while (working_.size() < workers_ && !queue.empty()) {
      Call& call = *queue.front();
      if (const auto outcome = refusal(call, now)) {
        refuse(call, *outcome);
        continue;
      }
      queue.pop_front();
      call.state_ = Call::State::kWorking;
      call.begun_ = now;
      call.space_ = std::move(spaces_.back());
      spaces_.pop_back();
      call.place_ = working_.insert(working_.end(), &call);
      call.changed_.notify_one();
    }
  }
}

void Admission::leave(Call& call, bool done) {
  const std::lock_guard lock(mutex_);
  require(call.state_ == Call::State::kWorking, "the call is not at work");
  const Clock::time_point now = Clock::now();
  if (done) call.times_->record(call.size_class_, now - call.begun_);
  end(call, now);
}

void Admission::end(Call& call, Clock::time_point now) {
  working_.erase(call.place_);
  spaces_.push_back(std::move(call.space_));
  call.state_ = Call::State::kOutside;
  dispatch(now);
}

void Admission::withdraw(Call& call) {
  const std::lock_guard lock(mutex_);
  call.cancelled_ = true;
  if (call.state_ == Call::State::kWaiting) waiting(call.priority_).erase(call.place_);
  if (call.state_ == Call::State::kWorking) return end(call, Clock::now());
  call.state_ = Call::State::kOutside;
}

void Admission::cancel(Call& call) {
  const std::lock_guard lock(mutex_);
  call.cancelled_ = true;
  if (call.state_ == Call::State::kWaiting) refuse(call, Outcome::kCancelled);
}

Admission::Load Admission::load() const {
  const std::lock_guard lock(mutex_);
  return {working_.size(), waiting_[0].size(), waiting_[1].size(), work_ahead(Priority::kLow, Clock::now())};
}

}  // namespace gr2
