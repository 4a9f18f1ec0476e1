// Streams and events, and whether what they do is ordered.
//
// Work is done when it is handed over; the order that a device would be bound to is kept beside it, in vector clocks
// (Lamport 1978, Fidge 1988): a stream counts its pieces of work, and knows of each other stream how much of its work
// came before. Two accesses of one place, one of them a write, neither of which knows of the other, are a race. A kernel's
// access counts at the address that it is given, not over what it computes from there.

#include <chrono>
#include <memory>

#include "driver.hpp"

using namespace cuda;

namespace {

typedef std::chrono::steady_clock Time;

struct Event {
  bool recorded, timed;
  Clock clock;
  Time::time_point at;
};

struct Access {
  uint64_t from, to;
  size_t stream;
  uint64_t count;
  bool write;
  const char* call;
};

// What is owed to page-locked memory, or asked of it, until the host knows that `count` of a stream is done.
struct Debt {
  size_t stream;
  uint64_t count;
  unsigned char* at;
  std::vector<unsigned char> bytes;
  // The bytes arrive there then; or are there until then.
  bool arrives;
};

// The first is the stream that calls without one name.
std::vector<std::unique_ptr<Stream>> streams;
std::map<void*, std::unique_ptr<Event>> events;
// Of the host, and of what everything that comes waits for.
Clock host, everything;
std::vector<Access> accesses;
std::vector<Debt> debts;

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

bool knows(const Clock& clock, size_t stream, uint64_t count) {
  return stream < clock.size() && clock[stream] >= count;
}

Stream* open_stream(bool blocking) {
  size_t index = streams.size();
  streams.push_back(std::make_unique<Stream>(Stream{index, blocking, true, Clock(index + 1)}));
  return streams.back().get();
}

Clock of_all() {
  Clock all;
  for (const auto& stream : streams) join(all, stream->clock);
  return all;
}

Event* event_of(void* handle) {
  auto found = events.find(handle);
  return found == events.end() ? nullptr : found->second.get();
}

Result record(Event* event, Clock clock) {
  event->clock = std::move(clock);
  event->recorded = true;
  event->at = Time::now();
  return SUCCESS;
}

#define STREAM(name, handle)         \
  Stream* name = stream_of(handle);  \
  if (!name) return violation(INVALID_HANDLE, "%s: no such stream: %p", __func__, handle)
#define EVENT(name, handle)         \
  Event* name = event_of(handle);   \
  if (!name) return violation(INVALID_HANDLE, "%s: no such event: %p", __func__, handle)
#define RECORDED(event) \
  if (!event->recorded) return violation(INVALID_HANDLE, "%s: an event that was never recorded", __func__)

}  // namespace

namespace cuda {

Stream* stream_of(void* handle) {
  if (streams.empty()) open_stream(true);
  if (!handle) return streams[0].get();
  for (const auto& stream : streams) {
    if (stream.get() == handle) return stream->live ? stream.get() : nullptr;
  }
  return nullptr;
}

void begin(Stream& stream) {
  stream_of(nullptr);
  join(stream.clock, host);
  join(stream.clock, everything);
  if (stream.index == 0) {
    // The stream without a name waits for all that are not apart from it, and they for it.
    for (const auto& other : streams) {
      if (other->blocking) join(stream.clock, other->clock);
    }
  } else if (stream.blocking) {
    join(stream.clock, streams[0]->clock);
  }
  ++stream.clock[stream.index];
}

bool touch(const char* call, Stream& stream, uint64_t from, size_t bytes, bool write) {
  uint64_t to = from + bytes;
  for (const Access& other : accesses) {
    bool meet = other.from < to && from < other.to && (write || other.write);
    if (meet && !knows(stream.clock, other.stream, other.count)) {
      violation(INVALID_VALUE, "race: %s %s %s on stream %zu, and %s %s it on stream %zu: neither waits for the other",
                call, write ? "writes" : "reads", place(from).c_str(), stream.index, other.call,
                other.write ? "writes" : "reads", other.stream);
      return false;
    }
  }
  // What this access follows need not be remembered where this one stands for it.
  for (size_t i = accesses.size(); i-- > 0;) {
    const Access& other = accesses[i];
    bool within = from <= other.from && other.to <= to;
    if (within && (write || (!other.write && other.stream == stream.index))) {
      accesses[i] = accesses.back();
      accesses.pop_back();
    }
  }
  accesses.push_back({from, to, stream.index, stream.clock[stream.index], write, call});
  return true;
}

void wait_for(const Clock& clock) {
  join(host, clock);
  std::vector<Debt> left;
  for (Debt& debt : debts) {
    if (!knows(host, debt.stream, debt.count)) {
      left.push_back(std::move(debt));
    } else if (debt.arrives) {
      std::memcpy(debt.at, debt.bytes.data(), debt.bytes.size());
    } else if (std::memcmp(debt.at, debt.bytes.data(), debt.bytes.size()) != 0) {
      violation(INVALID_VALUE, "%s was changed while a copy from it was under way", place(uint64_t(debt.at)).c_str());
    }
  }
  debts = std::move(left);
}

void wait_for_all() { wait_for(of_all()); }

void deliver_later(Stream& stream, void* to, std::vector<unsigned char> bytes) {
  debts.push_back({stream.index, stream.clock[stream.index], static_cast<unsigned char*>(to), std::move(bytes), true});
}

void keep_until_done(Stream& stream, const void* from, size_t bytes) {
  unsigned char* at = static_cast<unsigned char*>(const_cast<void*>(from));
  debts.push_back({stream.index, stream.clock[stream.index], at, {at, at + bytes}, false});
}

bool owed(uint64_t from, size_t bytes) {
  for (const Debt& debt : debts) {
    uint64_t at = uint64_t(debt.at);
    if (at < from + bytes && from < at + debt.bytes.size()) return true;
  }
  return false;
}

void forget(uint64_t from, size_t bytes) {
  for (size_t i = accesses.size(); i-- > 0;) {
    if (accesses[i].from < from + bytes && from < accesses[i].to) {
      accesses[i] = accesses.back();
      accesses.pop_back();
    }
  }
}

}  // namespace cuda

API Result cuStreamCreate(void** handle, unsigned flags) {
  READY();
  if (flags > STREAM_NON_BLOCKING) return violation(INVALID_VALUE, "%s: flags %u", __func__, flags);
  stream_of(nullptr);
  *handle = open_stream(flags != STREAM_NON_BLOCKING);
  return SUCCESS;
}

API Result cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
  if (priority < -5 || priority > 0) return violation(INVALID_VALUE, "%s: priority %d, expected -5 to 0", __func__, priority);
  return cuStreamCreate(handle, flags);
}

API Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  READY();
  *least = 0;
  *greatest = -5;
  return SUCCESS;
}

API Result cuStreamDestroy_v2(void* handle) {
  READY();
  STREAM(stream, handle);
  if (stream->index == 0) return violation(INVALID_HANDLE, "%s: the stream without a name", __func__);
  stream->live = false;
  return SUCCESS;
}

API Result cuStreamSynchronize(void* handle) {
  READY();
  STREAM(stream, handle);
  wait_for(stream->clock);
  return SUCCESS;
}

API Result cuStreamQuery(void* handle) { return cuStreamSynchronize(handle); }

API Result cuCtxSynchronize() {
  READY();
  wait_for_all();
  return SUCCESS;
}

API Result cuEventCreate(void** handle, unsigned flags) {
  READY();
  auto event = std::make_unique<Event>(Event{false, (flags & EVENT_DISABLE_TIMING) == 0, {}, {}});
  *handle = event.get();
  events[*handle] = std::move(event);
  return SUCCESS;
}

API Result cuEventDestroy_v2(void* handle) {
  READY_ANYWHERE();
  EVENT(event, handle);
  events.erase(event);
  return SUCCESS;
}

API Result cuEventRecord(void* handle, void* on) {
  READY();
  EVENT(event, handle);
  STREAM(stream, on);
  begin(*stream);
  return record(event, stream->clock);
}

API Result cuStreamWaitEvent(void* on, void* handle, unsigned) {
  READY();
  STREAM(stream, on);
  EVENT(event, handle);
  RECORDED(event);
  join(stream->clock, event->clock);
  return SUCCESS;
}

// Of all work of the context so far, and all to come.
API Result cuCtxRecordEvent(void*, void* handle) {
  READY();
  EVENT(event, handle);
  return record(event, of_all());
}

API Result cuCtxWaitEvent(void*, void* handle) {
  READY();
  EVENT(event, handle);
  RECORDED(event);
  join(everything, event->clock);
  return SUCCESS;
}

API Result cuEventSynchronize(void* handle) {
  READY_ANYWHERE();
  EVENT(event, handle);
  RECORDED(event);
  wait_for(event->clock);
  return SUCCESS;
}

API Result cuEventQuery(void* handle) { return cuEventSynchronize(handle); }

static Result elapsed(const char* call, float* milliseconds, void* from, void* to) {
  Event *first = event_of(from), *last = event_of(to);
  if (!first || !last || !first->recorded || !last->recorded || !first->timed || !last->timed) {
    return violation(INVALID_HANDLE, "%s: events that were not recorded with a time", call);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(last->at - first->at).count();
  return SUCCESS;
}

API Result cuEventElapsedTime(float* milliseconds, void* from, void* to) {
  READY_ANYWHERE();
  return elapsed(__func__, milliseconds, from, to);
}

API Result cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
  READY_ANYWHERE();
  return elapsed(__func__, milliseconds, from, to);
}
