// Requests from bytes to bytes, under the sanitisers. Of onnxruntime's library, whose path is in
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
using std::chrono::milliseconds;

constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

template <typename Fill>
std::string built(Fill fill) {
  std::string out;
  gr2::wire::Writer writer(out);
  fill(writer);
  return out;
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
  test_requests_are_read_and_their_rules_kept();
  test_item_ids_cannot_be_chosen_to_be_slow();
  if (const char* const library = std::getenv("GR2_ONNXRUNTIME"); library != nullptr) test_engine(library);
}
