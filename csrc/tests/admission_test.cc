// The admission, and what it knows of how long requests take, under the sanitisers.
#include "core/admission.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "core/service_times.h"
#include "tests/check.h"

namespace {

using gr2::Admission;
using gr2::Call;
using gr2::Clock;
using gr2::Outcome;
using gr2::Priority;
using std::chrono::milliseconds;

constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

// Waits until so many calls wait.
void await_waiting(const Admission& admission, std::size_t count) {
  while (admission.load().waiting_high + admission.load().waiting_low < count) std::this_thread::yield();
}

// A call that a thread of its own enters with.
struct Caller {
  Caller(Admission& admission, Priority priority, Clock::time_point deadline = kNoDeadline)
      : thread([&admission, priority, deadline, this] {
          refusal = admission.enter(call, priority, deadline, 1);
          decided = true;
          if (refusal) return;
          while (!finish) std::this_thread::yield();
          admission.leave(call, true);
        }) {}
  Outcome refused() {
    thread.join();
    CHECK(refusal.has_value());
    return *refusal;
  }
  void answered() {
    finish = true;
    thread.join();
    CHECK(!refusal.has_value());
  }
  Call call;
  std::atomic<bool> finish = false, decided = false;
  std::optional<Outcome> refusal;
  std::thread thread;
};

void test_calls_beyond_the_queue_are_refused_and_urgent_ones_take_the_place_of_others() {
  Admission admission(1, 2);
  Call working;
  CHECK(!admission.enter(working, Priority::kHigh, kNoDeadline, 1));
  Caller low(admission, Priority::kLow);
  await_waiting(admission, 1);
  Caller last(admission, Priority::kLow);
  await_waiting(admission, 2);
  CHECK(Caller(admission, Priority::kLow).refused() == Outcome::kFull);
  Caller high(admission, Priority::kHigh);
  CHECK(last.refused() == Outcome::kFull);
  await_waiting(admission, 2);
  admission.leave(working, true);
  while (!high.decided) std::this_thread::yield();
  CHECK(!low.decided);
  high.answered();
  low.answered();
  CHECK(admission.load().working == 0);
}

void test_cancelled_and_expired_calls_leave_the_queue() {
  Admission admission(1, 4);
  Call working, gone;
  CHECK(!admission.enter(working, Priority::kHigh, kNoDeadline, 1));
  Caller cancelled(admission, Priority::kHigh), expired(admission, Priority::kHigh, Clock::now() + milliseconds(30));
  admission.cancel(gone);
  CHECK(admission.enter(gone, Priority::kHigh, kNoDeadline, 1) == Outcome::kCancelled);
  CHECK(expired.refused() == Outcome::kExpired);
  await_waiting(admission, 1);
  admission.cancel(cancelled.call);
  CHECK(cancelled.refused() == Outcome::kCancelled);
  CHECK(admission.load().waiting_high == 0);
  Call late;
  CHECK(admission.enter(late, Priority::kHigh, Clock::now() - milliseconds(1), 1) == Outcome::kExpired);
  admission.leave(working, true);
}

void test_a_call_that_is_withdrawn_gives_its_place_up() {
  Admission admission(1, 2);
  Call working, waiting, next;
  CHECK(!admission.ask(working, Priority::kHigh, kNoDeadline, 1));
  CHECK(!admission.ask(waiting, Priority::kHigh, kNoDeadline, 1));
  CHECK(!admission.ask(next, Priority::kLow, kNoDeadline, 1));
  admission.withdraw(waiting);
  CHECK(waiting.cancelled() && admission.load().waiting_high == 0);
  CHECK(!admission.wait(working));
  admission.withdraw(working);
  CHECK(!admission.wait(next));
  CHECK(admission.load().working == 1);
  admission.leave(next, true);
  CHECK(admission.ask(waiting, Priority::kHigh, kNoDeadline, 1) == Outcome::kCancelled);
}

void test_a_call_without_enough_time_is_refused_at_once_until_it_might_have() {
  Admission admission(1, 64);
  for (int i = 0; i < 3; ++i) {
    Call call;
    CHECK(!admission.enter(call, Priority::kHigh, kNoDeadline, 50));
    std::this_thread::sleep_for(milliseconds(20));
    admission.leave(call, true);
  }
  const auto refused = [&](milliseconds time) {
    Call call;
    const auto outcome = admission.enter(call, Priority::kHigh, Clock::now() + time, 50);
    if (!outcome) admission.leave(call, false);
    return outcome == Outcome::kLate;
  };
  CHECK(refused(milliseconds(5)));
  CHECK(!refused(milliseconds(500)));
  Call working;
  CHECK(!admission.enter(working, Priority::kHigh, kNoDeadline, 50));
  CHECK(refused(milliseconds(25)));
  admission.leave(working, false);
  int tries = 0;
  while (refused(milliseconds(5))) CHECK(++tries < 1000);
  CHECK(tries > 10);
}

// Whatever was answered first, as one large request, says little of small ones.
void test_a_size_that_was_never_seen_is_let_in_some_day() {
  Admission admission(1, 4);
  Call large;
  CHECK(!admission.enter(large, Priority::kHigh, kNoDeadline, 1000));
  std::this_thread::sleep_for(milliseconds(100));
  admission.leave(large, true);
  const auto refused = [&] {
    Call small;
    const auto outcome = admission.enter(small, Priority::kHigh, Clock::now() + milliseconds(50), 10);
    if (!outcome) admission.leave(small, false);
    return outcome == Outcome::kLate;
  };
  int tries = 0;
  while (refused()) CHECK(++tries < 1000);
  CHECK(tries > 10);
}

// While others are at work, small ones whose wait is too long say nothing of the time that they take themselves.
void test_a_wait_that_is_too_long_leaves_the_estimate() {
  const auto times = std::make_shared<gr2::ServiceTimes>();
  const std::size_t size_class = gr2::ServiceTimes::size_class(50);
  times->record(size_class, milliseconds(20));
  Admission admission(1, 64);
  Call working, waits, works;
  CHECK(!admission.enter(working, Priority::kHigh, kNoDeadline, 50, times));
  CHECK(admission.ask(waits, Priority::kHigh, Clock::now() + milliseconds(38), 50, times) == Outcome::kLate);
  CHECK(times->estimate(size_class) == milliseconds(20));
  CHECK(admission.ask(works, Priority::kHigh, Clock::now() + milliseconds(15), 50, times) == Outcome::kLate);
  CHECK(times->estimate(size_class) < milliseconds(20));
  admission.leave(working, false);
}

void test_bundles_are_estimated_apart() {
  const auto fast = std::make_shared<gr2::ServiceTimes>(), slow = std::make_shared<gr2::ServiceTimes>();
  Admission admission(1, 4);
  Call first, second, third, fourth;
  CHECK(!admission.enter(first, Priority::kHigh, kNoDeadline, 50, slow));
  std::this_thread::sleep_for(milliseconds(100));
  admission.leave(first, true);
  const auto soon = [] { return Clock::now() + milliseconds(50); };
  CHECK(admission.ask(second, Priority::kHigh, soon(), 50, slow) == Outcome::kLate);
  CHECK(!admission.enter(third, Priority::kHigh, soon(), 50, fast));
  admission.leave(third, true);
  // What works says how long the others wait, whichever they are.
  CHECK(!admission.enter(first, Priority::kHigh, kNoDeadline, 50, slow));
  CHECK(admission.load().expected_wait > milliseconds(50));
  CHECK(admission.ask(fourth, Priority::kHigh, soon(), 50, fast) == Outcome::kLate);
  admission.leave(first, false);
}

void test_estimates_follow_sizes() {
  gr2::ServiceTimes times;
  const auto size_class = [](std::size_t size) { return gr2::ServiceTimes::size_class(size); };
  CHECK(times.estimate(size_class(100)).count() == 0);
  times.record(size_class(100), milliseconds(2));
  CHECK(times.estimate(size_class(100)) == milliseconds(2));
  CHECK(times.estimate(size_class(400)) == milliseconds(8));
  CHECK(times.estimate(size_class(3)) == milliseconds(2));
  for (int i = 0; i < 100; ++i) times.record(size_class(100), milliseconds(4));
  CHECK(times.estimate(size_class(100)) > milliseconds(3));
  times.record(size_class(100), std::chrono::seconds(100));
  CHECK(times.estimate(size_class(100)) < milliseconds(8));
}

void test_no_more_work_at_once_than_there_are_workers() {
  Admission admission(3, 8);
  std::atomic<int> working = 0, most = 0, answered = 0, refused = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 12; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 200; ++i) {
        Call call;
        std::thread canceller;
        if (i % 50 == 7) canceller = std::thread([&] { admission.cancel(call); });
        const auto priority = thread % 2 == 0 ? Priority::kHigh : Priority::kLow;
        const auto deadline = i % 3 == 0 ? Clock::now() + milliseconds(i % 7) : kNoDeadline;
        if (const auto outcome = admission.enter(call, priority, deadline, 1)) {
          ++refused;
        } else {
          const int now = ++working;
          int before = most;
          while (before < now && !most.compare_exchange_weak(before, now)) {
          }
          Admission::space(call).scores.assign(16, static_cast<float>(i));
          --working;
          admission.leave(call, true);
          ++answered;
        }
        if (canceller.joinable()) canceller.join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(most <= 3 && answered > 0 && answered + refused == 12 * 200);
  CHECK(admission.load().working == 0 && admission.load().waiting_high == 0 && admission.load().waiting_low == 0);
}

}  // namespace

int main() {
  test_calls_beyond_the_queue_are_refused_and_urgent_ones_take_the_place_of_others();
  test_cancelled_and_expired_calls_leave_the_queue();
  test_a_call_that_is_withdrawn_gives_its_place_up();
  test_a_call_without_enough_time_is_refused_at_once_until_it_might_have();
  test_a_size_that_was_never_seen_is_let_in_some_day();
  test_a_wait_that_is_too_long_leaves_the_estimate();
  test_bundles_are_estimated_apart();
  test_estimates_follow_sizes();
  test_no_more_work_at_once_than_there_are_workers();
}
