// Requests from the network: whatever the bytes, they are refused or read without reading outside of them, and the
// reply to what was read is a message that is read in turn.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/reply_message.h"
#include "core/request_message.h"
#include "core/wire.h"
#include "fuzz/driver.h"

namespace gr2::fuzz {
namespace {

using wire::tag;

template <typename Fill>
std::string built(Fill fill) {
  std::string out;
  wire::Writer writer(out);
  fill(writer);
  return out;
}

Bytes bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

// Counts the reply's items; ends the process if it is no message.
std::size_t items_in(const std::string& reply) {
  wire::Reader reader(reply);
  std::size_t items = 0;
  while (!reader.done()) {
    std::uint32_t field = 0;
    if (!reader.tag(field) || !reader.skip(field, wire::kMaxDepth)) std::abort();
    items += field == tag(2, wire::kBytes);
  }
  return items;
}

}  // namespace

std::vector<Bytes> seeds() {
  const auto packed = [](std::uint64_t first) {
    return built([&](wire::Writer& writer) {
      for (std::uint64_t i = 0; i < 40; ++i) writer.varint(i * i * i * first);
    });
  };
  const std::string ints = built([&](wire::Writer& writer) {
    writer.text(1, "an ID");
    writer.text(2, built([&](wire::Writer& ids) { ids.text(1, packed(1)); }));
    writer.text(3, built([&](wire::Writer& ids) { ids.text(1, packed(77)); }));
    for (int i = 0; i < 40; ++i) writer.real(4, static_cast<float>(i) + 0.5f);
    writer.number(6, 20);
    writer.number(8, 1);
    writer.number(9, 2);
  });
  const std::string strings = built([](wire::Writer& writer) {
    writer.text(
        3, built([](wire::Writer& ids) {
          for (const char* const name : {"a", "name", "art\xc3\xad\x63ulo", "\xe2\x82\xac", "\xf0\x9f\x98\x80"}) {
            ids.present_text(2, name);
          }
        }));
    writer.text(7, "bundle");
  });
  std::string groups;
  for (int i = 0; i < 60; ++i) groups += built([](wire::Writer& writer) { writer.varint(tag(20, wire::kStartGroup)); });
  for (int i = 0; i < 60; ++i) groups += built([](wire::Writer& writer) { writer.varint(tag(20, wire::kEndGroup)); });
  return {bytes_of(ints), bytes_of(strings), bytes_of(ints + groups), bytes_of(strings + strings)};
}

}  // namespace gr2::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A copy of just that size, so that a step beyond it is seen.
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  gr2::RequestMessage request;
  if (!request.parse(bytes)) return 0;
  for (const bool string_ids : {false, true}) {
    if (!keeps_rules(request, {string_ids, 1024, 1024, 0})) continue;
    std::string reply;
    write_fallback(request, "version", {}, reply);
    const std::size_t count = request.candidates.size(), listed = request.top_n == 0 ? count : request.top_n;
    if (gr2::fuzz::items_in(reply) != std::min(listed, count)) std::abort();
  }
  return 0;
}
