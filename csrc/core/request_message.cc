#include "core/request_message.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/hash.h"
#include "core/logsumexp.h"
#include "core/process_seed.h"
#include "core/wire.h"

namespace gr2 {
namespace {

using wire::Reader;
using wire::tag;

bool read_text(Reader& reader, std::string_view& text) {
  return reader.bytes(text) && wire::is_utf8(text);
}

bool read_packed_ints(Reader& reader, std::vector<std::int64_t>& values) {
  std::string_view packed;
  if (!reader.bytes(packed)) return false;
  Reader inner(packed);
  // Each value has one last byte, whose high bit is clear.
  values.reserve(values.size() + static_cast<std::size_t>(std::count_if(packed.begin(), packed.end(), [](char byte) {
                   return static_cast<std::uint8_t>(byte) < 0x80;
                 })));
  while (!inner.done()) {
    std::uint64_t value = 0;
    if (!inner.varint(value)) return false;
    values.push_back(static_cast<std::int64_t>(value));
  }
  return true;
}

bool read_packed_floats(Reader& reader, std::vector<float>& values) {
  std::string_view packed;
  if (!reader.bytes(packed) || packed.size() % sizeof(float) != 0) return false;
  if (packed.empty()) return true;
  const std::size_t before = values.size();
  values.resize(before + packed.size() / sizeof(float));
  std::memcpy(values.data() + before, packed.data(), packed.size());
  return true;
}

bool read_ids(Reader& outer, ItemIds& ids) {
  std::string_view bytes;
  if (!outer.bytes(bytes)) return false;
  Reader reader(bytes);
  while (!reader.done()) {
    std::uint32_t field = 0;
    if (!reader.tag(field)) return false;
    std::uint64_t number = 0;
    switch (field) {
      case tag(1, wire::kBytes):
        if (!read_packed_ints(reader, ids.ints)) return false;
        break;
      case tag(1, wire::kVarint):
        if (!reader.varint(number)) return false;
        ids.ints.push_back(static_cast<std::int64_t>(number));
        break;
      case tag(2, wire::kBytes):
        if (!read_text(reader, ids.strings.emplace_back())) return false;
        break;
      default:
        if (!reader.skip(field, wire::kMaxDepth - 1)) return false;
    }
  }
  return true;
}

// `place(i)` is where the search for ID i begins in a table of `mask` + 1 slots.
template <typename Ids, typename Place>
bool distinct(const Ids& ids, Place place) {
  const std::size_t mask = std::bit_ceil(2 * ids.size()) - 1;
  std::vector<std::uint32_t> slots(mask + 1, 0);  // 1 + the place of an ID
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::size_t at = place(ids[i]) & mask;
    for (; slots[at] != 0; at = (at + 1) & mask) {
      if (ids[slots[at] - 1] == ids[i]) return false;
    }
    slots[at] = static_cast<std::uint32_t>(i + 1);
  }
  return true;
}

bool fits(const ItemIds& ids, bool string_ids, std::size_t most) {
  return ids.size() <= most && (string_ids ? ids.ints.empty() : ids.strings.empty());
}

bool finite(const std::vector<float>& values, std::size_t count) {
  return values.empty() || (values.size() == count && all_finite(values));
}

}  // namespace

bool RequestMessage::parse(std::string_view bytes) {
  Reader reader(bytes);
  while (!reader.done()) {
    std::uint32_t field = 0, bits = 0;
    std::uint64_t number = 0;
    if (!reader.tag(field)) return false;
    bool read = true;
    switch (field) {
      case tag(1, wire::kBytes):
        read = read_text(reader, request_id);
        break;
      case tag(2, wire::kBytes):
        read = read_ids(reader, history);
        break;
      case tag(3, wire::kBytes):
        read = read_ids(reader, candidates);
        break;
      case tag(4, wire::kBytes):
        read = read_packed_floats(reader, scores);
        break;
      case tag(4, wire::kFixed32):
        read = reader.fixed32(bits);
        scores.push_back(std::bit_cast<float>(bits));
        break;
      case tag(5, wire::kBytes):
        read = read_packed_floats(reader, features);
        break;
      case tag(5, wire::kFixed32):
        read = reader.fixed32(bits);
        features.push_back(std::bit_cast<float>(bits));
        break;
      case tag(6, wire::kVarint):
        read = reader.varint(number);
        top_n = static_cast<std::uint32_t>(number);
        break;
      case tag(7, wire::kBytes):
        read = read_text(reader, bundle);
        break;
      case tag(8, wire::kVarint):
        read = reader.varint(number);
        fallback = number != 0;
        break;
      case tag(9, wire::kVarint):
        read = reader.varint(number);
        priority = static_cast<std::int32_t>(number);
        break;
      default:
        read = reader.skip(field, wire::kMaxDepth);
    }
    if (!read) return false;
  }
  return true;
}

bool keeps_rules(const RequestMessage& request, const RequestLimits& limits) {
  const std::size_t count = request.candidates.size();
  const std::uint64_t seed = process_seed();
  return request.request_id.size() <= RequestLimits::kMaxRequestId &&
         fits(request.history, limits.string_ids, limits.max_history) &&
         fits(request.candidates, limits.string_ids, limits.max_candidates) && count > 0 &&
         finite(request.scores, count) && finite(request.features, count * limits.feature_width) &&
         (limits.string_ids
              ? distinct(request.candidates.strings, [seed](auto id) { return hash_bytes(id.data(), id.size(), seed); })
              : distinct(request.candidates.ints,
                         [seed](auto id) { return mix64(static_cast<std::uint64_t>(id) ^ seed); }));
}

}  // namespace gr2
