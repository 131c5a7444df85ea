"""One handler for each pattern; all of them are called cows."""

import rpcd


@rpcd.respond("cows", workers=2)
def count(message):
    output = rpcd.Output(message, "cows")
    output.publish({"counted": message.body["names"]})  # everybody who has subscribed hears it
    for name in message.body["names"]:
        output.push({"name": name})  # one of those who pull milks it
    return {"cows": len(message.body["names"])}


@rpcd.pull("cows", workers=4, retry={"delays": [1, 60]})
def milk(message):
    print("milking", message.body["name"])


@rpcd.subscribe("cows")
def hear(message):
    print("heard of", ", ".join(message.body["counted"]))
