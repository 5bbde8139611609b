// Streams, events and recordings.
//
// Most work runs at once in the thread that gives it. Two things are held back, as a device may: copies from locked memory
// of the host, and recordings that run again; and with them all that their stream, or one that waits for it, is given
// after. They are done when the host waits for them, as late as the order of streams and events allows. With
// EVENKEEL_EMULATOR_ORDER=reversed copies from locked memory are done as early as that order allows, before recordings
// that the stream of steps still holds back. So a wait that is missing, either way, reads or leaves wrong numbers.
// A stream that records keeps its work. Stricter than a device where that finds mistakes: no memory is taken, no module
// loaded and nothing copied from or to the host while a stream of the same thread records, and a recording has one stream.

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "device.h"

namespace {

// Work that is held back, or a wait for the first `position` of another stream.
struct Entry {
    emulated::Operation operation;
    CUstream stream = nullptr;
    uint64_t position = 0;
    bool eager = false;
};

} // namespace

struct CUstream_st {
    bool records = false;
    std::vector<emulated::Operation> operations;
    std::deque<Entry> held;
    // Entries so far, and those that are done.
    uint64_t given = 0, done = 0;
    // The first fault of what was held back, told to who waits.
    CUresult fault = CUDA_SUCCESS;
};

struct CUevent_st {
    // The stream that recorded it during a recording.
    CUstream recorded = nullptr;
    // Where it was recorded last.
    CUstream stream = nullptr;
    uint64_t position = 0;
    std::chrono::steady_clock::time_point at;
};

struct CUgraph_st {
    std::vector<emulated::Operation> operations;
};

struct CUgraphExec_st {
    std::vector<emulated::Operation> operations;
};

namespace emulated {
namespace {

thread_local int recordings = 0;

// Of all that is held back.
std::recursive_mutex lock;
// Streams stay for good, since events name them.
std::vector<CUstream> streams;

// The streams without a handle of their own, 0 to 2, never record and hold nothing back.
bool is_own(CUstream stream) { return reinterpret_cast<uintptr_t>(stream) > 2; }
bool records(CUstream stream) { return is_own(stream) && stream->records; }

bool early() {
    static const bool early = [] {
        const char *order = std::getenv("EVENKEEL_EMULATOR_ORDER");
        return order && std::strcmp(order, "reversed") == 0;
    }();
    return early;
}

void do_first(CUstream stream) {
    Entry entry = std::move(stream->held.front());
    stream->held.pop_front();
    stream->done++;
    if (!entry.operation) return;
    CUresult fault = entry.operation();
    if (stream->fault == CUDA_SUCCESS) stream->fault = fault;
}

// Does what a stream was given first, and what that waits for.
void finish(CUstream stream, uint64_t position) {
    while (stream->done < position) {
        const Entry &entry = stream->held.front();
        if (entry.stream) finish(entry.stream, entry.position);
        do_first(stream);
    }
}

// Does what may be done early and waits for nothing.
void advance(CUstream stream) {
    while (!stream->held.empty()) {
        const Entry &entry = stream->held.front();
        if (entry.stream ? entry.stream->done < entry.position : !entry.eager) return;
        do_first(stream);
    }
}

void hold(CUstream stream, Entry entry) {
    stream->held.push_back(std::move(entry));
    stream->given++;
    if (early()) advance(stream);
}

CUresult told(CUstream stream) { return std::exchange(stream->fault, CUDA_SUCCESS); }

} // namespace

bool recording() { return recordings > 0; }

CUresult submit(CUstream stream, Operation operation) {
    if (records(stream)) {
        stream->operations.push_back(std::move(operation));
        return CUDA_SUCCESS;
    }
    if (is_own(stream)) {
        std::lock_guard guard(lock);
        if (!stream->held.empty()) {
            hold(stream, {std::move(operation)});
            return CUDA_SUCCESS;
        }
    }
    return operation();
}

CUresult submit_late(CUstream stream, Operation operation, bool eager) {
    if (!is_own(stream)) return operation();
    std::lock_guard guard(lock);
    hold(stream, {std::move(operation), nullptr, 0, eager});
    return CUDA_SUCCESS;
}

CUresult settle(CUstream stream) {
    std::lock_guard guard(lock);
    if (is_own(stream)) {
        finish(stream, stream->given);
        return told(stream);
    }
    CUresult fault = CUDA_SUCCESS;
    for (CUstream each : streams) {
        finish(each, each->given);
        CUresult own = told(each);
        if (fault == CUDA_SUCCESS) fault = own;
    }
    return fault;
}

} // namespace emulated

using namespace emulated;

CUresult cuStreamCreate(CUstream *out, unsigned) {
    *out = new CUstream_st;
    std::lock_guard guard(lock);
    streams.push_back(*out);
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int) { return cuStreamCreate(out, flags); }
CUresult cuStreamDestroy(CUstream stream) { return settle(stream); }
CUresult cuStreamSynchronize(CUstream stream) {
    if (records(stream))
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream that records cannot be waited for");
    return settle(stream);
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = records(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    if (records(stream) ? event->recorded != stream : event->recorded != nullptr)
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a stream waits for another one, and one of both records");
    if (records(stream)) return CUDA_SUCCESS;
    std::lock_guard guard(lock);
    if (!event->stream || event->stream->done >= event->position) return CUDA_SUCCESS;
    if (!is_own(stream)) return settle(event->stream);
    hold(stream, {nullptr, event->stream, event->position});
    return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    if (!is_own(stream) || stream->records)
        return refuse(CUDA_ERROR_ILLEGAL_STATE, "this stream cannot begin to record");
    stream->records = true;
    recordings++;
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *out) {
    if (!records(stream)) return refuse(CUDA_ERROR_ILLEGAL_STATE, "this stream does not record");
    stream->records = false;
    recordings--;
    *out = new CUgraph_st{std::move(stream->operations)};
    stream->operations.clear();
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long) {
    *out = new CUgraphExec_st{graph->operations};
    return CUDA_SUCCESS;
}
CUresult cuGraphUpload(CUgraphExec, CUstream) { return CUDA_SUCCESS; }
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    if (records(stream)) return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a recording inside a recording");
    auto run = [operations = graph->operations] {
        for (const Operation &operation : operations)
            if (CUresult fault = operation()) return fault;
        return CUDA_SUCCESS;
    };
    return submit_late(stream, run, false);
}
CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec graph) {
    delete graph;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *out, unsigned) {
    *out = new CUevent_st;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
    std::lock_guard guard(lock);
    event->recorded = records(stream) ? stream : nullptr;
    event->stream = is_own(stream) ? stream : nullptr;
    event->position = is_own(stream) ? stream->given : 0;
    event->at = std::chrono::steady_clock::now();
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent event) {
    std::lock_guard guard(lock);
    return !event->stream || event->stream->done >= event->position ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventSynchronize(CUevent event) {
    std::lock_guard guard(lock);
    if (!event->stream) return CUDA_SUCCESS;
    finish(event->stream, event->position);
    return told(event->stream);
}
CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return CUDA_SUCCESS;
}
