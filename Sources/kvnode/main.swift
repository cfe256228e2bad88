import NodeRuntime

NodeMain.run()
