import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which reads it when torch is imported, would print its own starts and stops
