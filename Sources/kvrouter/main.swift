import RouterRuntime

RouterMain.run()
