// The text lies in a section of its own, which is written into finished programs: a new revision
// compiles nothing anew. It is no constant, so that no compiler takes its first value for its only one.
#include "revision.h"

__attribute__((section(".rk_revision"), used)) char rangekeeper_revision_text[64] = "unknown";

const char *rangekeeper_revision(void) {
    rangekeeper_revision_text[sizeof(rangekeeper_revision_text) - 1] = 0;
    return rangekeeper_revision_text;
}
