// `kvbench`: a load generator for Rangekeeper and for any server of the Redis protocol.

import Glibc

exit(BenchProgram.run(Array(CommandLine.arguments.dropFirst())))
