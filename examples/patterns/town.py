"""Any program sends in all three patterns, by one output: python town.py."""

import rpcd

with rpcd.Client() as client:  # the broker is that of RABBITMQ_URL, or the one on this machine
    cows = rpcd.Output(client, "cows")
    print("counted:", cows.request({"names": ["bella", "rosa"]}, timeout=5))
    cows.push({"name": "flora"})
    cows.publish({"counted": ["flora"]})
