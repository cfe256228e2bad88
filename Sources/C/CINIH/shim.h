// libinih, imported only by Configuration.
#pragma once
#include <ini.h>
