// Streams, events and recordings. Work runs at once in the thread that gives it, in order; a stream that records keeps
// it.
//
// Stricter than a device where that finds mistakes: no memory is taken, no module loaded and nothing copied from or to
// the host while a stream of the same thread records, and a recording has one stream.

#include <atomic>
#include <chrono>

#include "device.h"

struct CUstream_st {
    bool records = false;
    std::vector<emulated::Operation> operations;
};

struct CUevent_st {
    // The stream that recorded it during a recording.
    CUstream recorded = nullptr;
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

// The streams without a handle of their own, 0 to 2, never record.
bool records(CUstream stream) { return reinterpret_cast<uintptr_t>(stream) > 2 && stream->records; }

} // namespace

bool recording() { return recordings > 0; }

CUresult submit(CUstream stream, Operation operation) {
    if (!records(stream)) return operation();
    stream->operations.push_back(std::move(operation));
    return CUDA_SUCCESS;
}

} // namespace emulated

using namespace emulated;

CUresult cuStreamCreate(CUstream *out, unsigned) {
    *out = new CUstream_st;
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int) { return cuStreamCreate(out, flags); }
CUresult cuStreamDestroy(CUstream stream) {
    delete stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    if (records(stream))
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream that records cannot be waited for");
    return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = records(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    if (records(stream) ? event->recorded != stream : event->recorded != nullptr)
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a stream waits for another one, and one of both records");
    return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    if (reinterpret_cast<uintptr_t>(stream) <= 2 || stream->records)
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
    for (const Operation &operation : graph->operations)
        if (CUresult fault = operation()) return fault;
    return CUDA_SUCCESS;
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
    event->recorded = records(stream) ? stream : nullptr;
    event->at = std::chrono::steady_clock::now();
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return CUDA_SUCCESS;
}
