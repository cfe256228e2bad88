// `kvctl`: the operator's tool of a Rangekeeper cluster.

import Glibc

exit(Program(arguments: Array(CommandLine.arguments.dropFirst())).run().rawValue)
