"""Clusters for tests: one of objects in this process, and Ray with several nodes on this machine."""

import contextlib
from concurrent.futures import Future

import numpy as np
import psutil

from jaxtrain.cluster import pool
from jaxtrain.cluster.session import Lost
from tests.multihost.launch import free_port


class Here:
    """A cluster whose workers are objects of this process; some never start, and some of their blocks are lost."""

    def __init__(self, room=3, lost=(), seed=0, never=()):
        self.room = lambda need: room
        self.lost, self.never, self.random = set(lost), never, np.random.default_rng(seed)
        self.workers = self.calls = self.most = 0

    def worker(self, kind, *arguments, need):
        self.workers += 1
        return None if self.workers in self.never else kind(*arguments)

    def call(self, worker, method, *arguments):
        self.calls += method == "block"
        task = Future()
        if worker is None:
            return task
        try:
            task.set_result(getattr(worker, method)(*arguments))
        except Exception as error:
            task.set_exception(error)
        if method == "block" and self.calls in self.lost:
            task = Future()
            task.set_exception(Lost("its node died"))
        return task

    def require(self, need, option):
        pass

    def ended(self, tasks, timeout):
        """In any order."""
        self.most = max(self.most, len(tasks))
        return list(self.random.permutation(np.array([task for task in tasks if task.done()], object))[:1])

    def result(self, task):
        return task.result()


def connect(session, monkeypatch, block_images):
    """Commands with --cluster.address find this session, whose blocks have this many images."""
    monkeypatch.setattr("jaxtrain.cluster.session.connected", lambda address: contextlib.nullcontext(session))
    monkeypatch.setattr(pool, "BLOCK_IMAGES", block_images)
    return session


def add_node(cluster, cpus):
    """Ray gives its agents fifteen seconds to start; on a busy machine they need several tries."""
    agents = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    for left in reversed(range(8)):
        try:
            return cluster.add_node(num_cpus=cpus, **{agent: free_port() for agent in agents})
        except Exception:
            if not left:
                raise


def kill(cluster, one):
    """As if its power went: nothing of it has time to save."""
    raylet = psutil.Process(one.all_processes["raylet"][0].process.pid)
    for process in [*raylet.children(recursive=True), raylet]:
        process.kill()
    cluster.remove_node(one, allow_graceful=False)
