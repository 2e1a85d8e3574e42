// Requests from bytes to bytes, and the admission, under the sanitisers. Of onnxruntime's library, whose path is in
// GR2_ONNXRUNTIME, a graph is run, too; without one, that part is passed over.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/admission.h"
#include "core/codebook_builder.h"
#include "core/hash.h"
#include "core/request_handler.h"
#include "core/wire.h"
#include "tests/check.h"

namespace {

using gr2::Admission;
using gr2::Call;
using gr2::Clock;
using gr2::Outcome;
using gr2::Priority;
using std::chrono::milliseconds;

constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

template <typename Fill>
std::string built(Fill fill) {
  std::string out;
  gr2::wire::Writer writer(out);
  fill(writer);
  return out;
}

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

constexpr int kItems = 64, kSize = 20;

std::string request_bytes(int first, bool low) {
  return built([&](gr2::wire::Writer& writer) {
    writer.text(1, "id");
    writer.text(2, built([&](gr2::wire::Writer& ids) {
                  ids.text(1, built([](gr2::wire::Writer& packed) {
                             for (std::uint64_t i = 0; i < 9; ++i) packed.varint(i);
                           }));
                }));
    writer.text(3, built([&](gr2::wire::Writer& ids) {
                  for (int i = 0; i < kSize; ++i) ids.present_number(1, static_cast<std::uint64_t>((first + i) % 80));
                }));
    for (int i = 0; i < kSize; ++i) writer.real(4, static_cast<float>(i % 5) + 1);
    writer.number(9, low ? 2 : 0);
  });
}

void test_requests_are_read_and_their_rules_kept() {
  const std::string bytes = request_bytes(3, true);
  gr2::RequestMessage request;
  CHECK(request.parse(bytes));
  CHECK(request.request_id == "id" && request.history.ints.size() == 9 && request.candidates.ints.size() == kSize);
  CHECK(request.scores.size() == kSize && request.priority == gr2::RequestMessage::kPriorityLow);
  const gr2::RequestLimits limits{false, 9, kSize, 0};
  CHECK(keeps_rules(request, limits));
  CHECK(!keeps_rules(request, {false, 8, kSize, 0}) && !keeps_rules(request, {false, 9, kSize - 1, 0}));
  CHECK(!keeps_rules(request, {true, 9, kSize, 0}));
  request.candidates.ints[4] = request.candidates.ints[9];
  CHECK(!keeps_rules(request, limits));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    gr2::RequestMessage part;
    part.parse(std::string(bytes, 0, size));
  }
}

// IDs that fall on one slot of a table that is not seeded cost as any others.
void test_item_ids_cannot_be_chosen_to_be_slow() {
  constexpr std::size_t kCount = 1 << 15;
  // mix64 is undone: each multiplication by the inverse of its factor, each shift by itself.
  std::uint64_t inverse = 1;
  for (int step = 0; step < 6; ++step) inverse *= 2 - 0xd6e8feb86659fd93u * inverse;
  const auto unmixed = [inverse](std::uint64_t x) {
    for (int step = 0; step < 2; ++step) {
      x ^= x >> 32;
      x *= inverse;
    }
    return x ^ x >> 32;
  };
  const auto took = [](auto id_of) {
    gr2::RequestMessage request;
    for (std::size_t i = 0; i < kCount; ++i) request.candidates.ints.push_back(static_cast<std::int64_t>(id_of(i)));
    const Clock::time_point start = Clock::now();
    CHECK(keeps_rules(request, {false, 0, kCount, 0}));
    return Clock::now() - start;
  };
  CHECK(gr2::mix64(unmixed(std::uint64_t{7} << 40)) == std::uint64_t{7} << 40);
  const auto any = took([](std::uint64_t i) { return 1000003 * i; });
  const auto chosen = took([&](std::uint64_t i) { return unmixed(i << 32); });
  CHECK(chosen < 20 * any + milliseconds(5));
}

std::string field_text(std::uint32_t field, const std::string& value) {
  return built([&](gr2::wire::Writer& writer) { writer.present_text(field, value); });
}

// A graph's input or output: extents of -1 may vary.
std::string port(const std::string& name, int type, const std::vector<int>& shape) {
  std::string extents;
  for (const int extent : shape) {
    extents += field_text(1, built([&](gr2::wire::Writer& writer) {
                            if (extent >= 0) writer.number(1, static_cast<std::uint64_t>(extent));
                          }));
  }
  const std::string tensor = built([&](gr2::wire::Writer& writer) {
    writer.number(1, static_cast<std::uint64_t>(type));
    writer.text(2, extents);
  });
  return field_text(1, name) + field_text(2, field_text(1, tensor));
}

// logits = mask + table, of (1, V), and prior = the sums of the rows of features: a model of one level.
std::string graph_bytes(const std::vector<float>& table) {
  const std::string add =
      field_text(1, "mask") + field_text(1, "table") + field_text(2, "logits") + field_text(4, "Add");
  const std::string keep = built([](gr2::wire::Writer& writer) {
    writer.text(1, "keepdims");
    writer.number(20, 2);
  });
  const std::string axes = built([](gr2::wire::Writer& writer) {
    writer.text(1, "axes");
    writer.present_number(8, 1);
    writer.number(20, 7);
  });
  const std::string sum = field_text(1, "features") + field_text(2, "prior") + field_text(4, "ReduceSum") +
                          field_text(5, keep) + field_text(5, axes);
  const std::string constant = built([&](gr2::wire::Writer& writer) {
    writer.number(1, 1);
    writer.number(1, table.size());
    writer.number(2, 1);
    writer.text(8, "table");
    writer.text(9, {reinterpret_cast<const char*>(table.data()), table.size() * sizeof(float)});
  });
  const int columns = static_cast<int>(table.size());
  const std::string graph = field_text(1, add) + field_text(1, sum) + field_text(2, "test") + field_text(5, constant) +
                            field_text(11, port("history", 7, {-1, 1})) + field_text(11, port("mask", 1, {-1, -1})) +
                            field_text(11, port("features", 1, {-1, 3})) +
                            field_text(12, port("logits", 1, {-1, columns})) + field_text(12, port("prior", 1, {-1}));
  return built([&](gr2::wire::Writer& writer) {
    writer.number(1, 6);
    writer.text(7, graph);
    writer.text(8, built([](gr2::wire::Writer& opset) { opset.number(2, 11); }));
  });
}

std::shared_ptr<const gr2::Codebook> make_codebook() {
  const auto path = std::filesystem::temp_directory_path() / ("gr2-serving-test-" + std::to_string(::getpid()));
  gr2::CodebookBuilder builder({path.string(), 1, kItems, false, std::size_t{1} << 16, {}});
  std::vector<std::int64_t> ids;
  std::vector<std::uint16_t> codes;
  for (int i = 0; i < kItems; ++i) {
    ids.push_back(i);
    codes.push_back(static_cast<std::uint16_t>(i));
  }
  builder.add(std::span<const std::int64_t>(ids), codes);
  builder.finish();
  auto codebook = std::make_shared<gr2::Codebook>(path.string());
  std::filesystem::remove(path);
  return codebook;
}

// The reply without its timings, which follow the bundle's version.
std::string answer(const gr2::Engine& engine, Admission& admission, const std::string& bytes) {
  gr2::RequestMessage request;
  const Clock::time_point now = Clock::now();
  CHECK(request.parse(bytes));
  Call call;
  std::string out;
  gr2::RequestHandler handler(engine, request, {now, now}, admission, call, kNoDeadline);
  CHECK(!handler.start(out).has_value() && handler.finish(out) == Outcome::kAnswered);
  const std::size_t version = out.find("version");
  CHECK(version != std::string::npos);
  return out.substr(0, version);
}

void test_engine(const char* library) {
  const auto runtime = std::make_shared<const gr2::OnnxRuntime>(library);
  std::vector<float> table;
  for (int i = 0; i < kItems; ++i) table.push_back(static_cast<float>((i * 37) % 64) * 0.1f);
  gr2::EngineSpec spec;
  spec.model = {1, kItems, 4, 3, gr2::Normalization::kRaw, false, {}};
  spec.model.memory = {
      .attention = 32, .causal = 6, .hidden = 48, .one_layer = true, .large = 1 << 20, .most = 1 << 30};
  spec.limits = {false, 64, 64, 0};
  spec.version = "version";
  spec.rank_features.assign(64 * 3, 0.0f);
  const std::string graph = graph_bytes(table);
  const gr2::Engine engine(runtime, {graph, {}}, make_codebook(), spec, 1);
  CHECK(engine.model().scorer()->inputs().size() == 3 && engine.model().scorer()->outputs().size() == 2);
  Admission admission(2, 64);
  const std::string first = answer(engine, admission, request_bytes(0, false));
  gr2::wire::Reader reader(first);
  std::uint32_t tag = 0, index = 0;
  std::string_view item;
  CHECK(reader.tag(tag) && reader.bytes(item) && item == "id");
  CHECK(reader.tag(tag) && tag == gr2::wire::tag(2, gr2::wire::kBytes) && reader.bytes(item));
  CHECK(item[0] == '\x08');
  index = static_cast<std::uint32_t>(item[1]);
  for (std::uint32_t i = 0; i < kSize; ++i) CHECK(table[index] >= table[i]);
  std::vector<std::thread> threads;
  std::atomic<int> same = 0;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 50; ++i) same += answer(engine, admission, request_bytes(0, thread % 2 == 1)) == first;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(same == 200);
  CHECK(admission.counters().outcomes(static_cast<std::size_t>(Outcome::kAnswered)) == 201);
  bool refused = false;
  try {
    gr2::OnnxSession(runtime, "no graph", 1);
  } catch (const gr2::OnnxError&) {
    refused = true;
  }
  CHECK(refused);
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
  test_requests_are_read_and_their_rules_kept();
  test_item_ids_cannot_be_chosen_to_be_slow();
  if (const char* const library = std::getenv("GR2_ONNXRUNTIME"); library != nullptr) test_engine(library);
}
