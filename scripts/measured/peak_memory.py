"""Run a command and print the largest resident set that the kernel counts for it, in its own unit: COMMAND [ARG ...].

A process of its own: a child is born with the peak of the process that starts it, and a test suite's is large.
"""

import os
import resource
import subprocess
import sys

done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode and os.EX_SOFTWARE)
