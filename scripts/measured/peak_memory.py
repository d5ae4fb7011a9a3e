"""Run a command and print its largest resident set, in the unit of the kernel. Arguments: COMMAND [ARG ...].

A child starts with the peak of its parent. That of a test suite is large, so this small program is the parent.
"""

import os
import resource
import subprocess
import sys

done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode and os.EX_SOFTWARE)
