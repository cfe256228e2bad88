import ControllerRuntime

ControllerMain.run()
