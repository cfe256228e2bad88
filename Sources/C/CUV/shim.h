// libuv, imported only by EventLoop.
#pragma once
#include <uv.h>
