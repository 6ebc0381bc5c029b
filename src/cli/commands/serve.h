// What `gemma4 serve` does once its model is loaded.
#pragma once

#include "engine/engine.h"
#include "server/server.h"

namespace gemma4 {

// Blocks SIGINT and SIGTERM, so that serve_until_stopped() alone sees them; before any thread is there.
void block_stop_signals();

// Says its address on standard output and serves until a signal comes; then running answers have `grace` seconds.
// Returns an exit code; throws DeviceError once every client was told that the device failed, Error where it cannot
// listen.
int serve_until_stopped(Engine& engine, const ServerOptions& options, double grace);

}  // namespace gemma4
