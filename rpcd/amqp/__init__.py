"""Floor 2: the shell. Twisted throughout, pika in `port` alone; everything here runs on the reactor but `workers`' loops."""
