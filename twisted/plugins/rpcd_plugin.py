"""Makes `twistd rpcd` known to Twisted; loaded whenever twistd lists its plugins, so it must stay light."""

from twisted.application.service import ServiceMaker

rpcd = ServiceMaker("rpcd", "rpcd.tap", "Runs Python callables as RabbitMQ consumers and RPC services.", "rpcd")
