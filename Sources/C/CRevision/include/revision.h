// The source revision of the running build, imported only by BuildInfo.
#pragma once

// The revision that `scripts/stamp-revision` wrote into the program, or "unknown".
const char *rangekeeper_revision(void);
