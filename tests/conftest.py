"""Set before anything imports torch or NumPy: one thread a test process (they run side by side), and no window for figures."""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: one of the longest; `make test-all` runs it, and so does continuous integration')
