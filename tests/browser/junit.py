"""Reads a JUnit file with junitparser and prints what it found as JSON: junit.py FILE."""

import json
import sys

from junitparser import Error, Failure, JUnitXml, Skipped

KINDS = {Skipped: "skipped", Failure: "failure", Error: "error"}

suites = []
for suite in JUnitXml.fromfile(sys.argv[1]):
    cases = []
    for case in suite:
        outcome = case.result[0] if case.result else None
        cases.append(
            {
                "name": case.name,
                "class": case.classname,
                "outcome": KINDS[type(outcome)] if outcome is not None else "passed",
                "message": outcome.message if outcome is not None else None,
                "out": case.system_out,
            }
        )
    suites.append(
        {
            "name": suite.name,
            "tests": suite.tests,
            "failures": suite.failures,
            "errors": suite.errors,
            "skipped": suite.skipped,
            "cases": cases,
        }
    )
json.dump(suites, sys.stdout)
