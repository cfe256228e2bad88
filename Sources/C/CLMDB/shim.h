// LMDB, imported only by BTreeEngine.
#pragma once
#include <lmdb.h>
