// libmicrohttpd, imported only by AdminHTTP.
#pragma once
#include <microhttpd.h>
