#include "core/reply_message.h"

#include <algorithm>

#include "core/wire.h"

namespace gr2 {
namespace {

using wire::varint_size;
using wire::Writer;

enum Status : std::uint32_t { kScored = 1, kUnknownItem = 2, kNotRanked = 3 };

void write_item(const RequestMessage& request, std::size_t index, float score, Status status, Writer& writer) {
  const ItemIds& ids = request.candidates;
  // All tags are of one byte; the status is, too. The item's ID is there whatever it is, as a member of a oneof.
  std::size_t size = 2;
  if (index != 0) size += 1 + varint_size(index);
  if (std::bit_cast<std::uint32_t>(score) != 0) size += 1 + sizeof score;
  if (ids.strings.empty()) {
    const auto id = static_cast<std::uint64_t>(ids.ints[index]);
    writer.header(2, size + 1 + varint_size(id));
    writer.number(1, index);
    writer.present_number(2, id);
  } else {
    const std::string_view id = ids.strings[index];
    writer.header(2, size + 1 + varint_size(id.size()) + id.size());
    writer.number(1, index);
    writer.present_text(3, id);
  }
  writer.real(4, score);
  writer.number(5, status);
}

void write_timings(const Timings& timings, Writer& writer) {
  std::size_t size = 0;
  const auto number = [&](std::size_t phase) { return static_cast<std::uint64_t>(timings[phase].count()); };
  for (std::size_t i = 0; i < kPhases; ++i) size += number(i) == 0 ? 0 : 1 + varint_size(number(i));
  writer.header(4, size);
  for (std::size_t i = 0; i < kPhases; ++i) writer.number(static_cast<std::uint32_t>(i + 1), number(i));
}

// Bytes that hold the reply to most requests.
void reserve(const RequestMessage& request, std::string& out) {
  std::size_t size = 128 + request.request_id.size() + 32 * request.candidates.size();
  for (const std::string_view id : request.candidates.strings) size += id.size();
  out.clear();
  out.reserve(size);
}

}  // namespace

void write_reply(const RequestMessage& request, const RankedSlate& slate, std::string_view version,
                 const Timings& timings, std::string& out) {
  reserve(request, out);
  Writer writer(out);
  writer.text(1, request.request_id);
  for (const std::int32_t candidate : slate.order) {
    const auto index = static_cast<std::size_t>(candidate);
    const bool known = slate.known[index] != 0;
    write_item(request, index, known ? slate.scores[index] : 0.0f, known ? kScored : kUnknownItem, writer);
  }
  writer.text(3, version);
  write_timings(timings, writer);
  writer.number(5, slate.unknown_history);
}

void write_fallback(const RequestMessage& request, std::string_view version, const Timings& timings, std::string& out) {
  reserve(request, out);
  Writer writer(out);
  writer.text(1, request.request_id);
  const std::size_t count = request.candidates.size(), listed = request.top_n == 0 ? count : request.top_n;
  for (std::size_t i = 0; i < std::min(listed, count); ++i) write_item(request, i, 0.0f, kNotRanked, writer);
  writer.text(3, version);
  write_timings(timings, writer);
  writer.number(6, 1);
}

}  // namespace gr2
