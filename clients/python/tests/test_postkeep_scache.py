"""Tests against a running cache, whose socket is the argument; and against servers that misbehave."""

import os
import pathlib
import socket
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import postkeep_scache  # noqa: E402
from postkeep_scache import Cache, Error, Refused, Session  # noqa: E402

PATH = ""


def descriptors():
    return len(os.listdir("/proc/self/fd"))


class WithCache(unittest.TestCase):
    def setUp(self):
        self.before = descriptors()
        self.cache = Cache(PATH)

    def tearDown(self):
        self.cache.close()
        self.assertEqual(descriptors(), self.before, "descriptors leak")

    def test_a_session_goes_through_the_cache_once(self):
        near, far = socket.socketpair()
        label, prop = b"python\nendpoint\xff", b"property \n \xfe"
        self.cache.save_endpoint(label, prop, near, ttl=60)
        self.assertEqual(near.fileno(), -1)
        with Cache(PATH) as other:
            session = other.find_endpoint(label)
            self.assertEqual(session.endpoint_property, prop)
            self.assertIsNone(session.destination_property)
            with session.take() as found:
                found.sendall(b"same")
                self.assertEqual(far.recv(10), b"same")
            self.assertRaises(ValueError, session.take)
            self.assertIsNone(other.find_endpoint(label))
        far.close()

    def test_a_destination_leads_to_an_endpoint(self):
        near, far = socket.socketpair()
        self.cache.save_destination("python destination", "by name", "python endpoint", ttl=60)
        self.assertIsNone(self.cache.find_destination("python destination"))
        self.cache.save_endpoint("python endpoint", "", near, ttl=60)
        with self.cache.find_destination("python destination") as session:
            self.assertEqual(session.destination_property, b"by name")
            self.assertEqual(session.endpoint_property, b"")
        # It was not taken, so it is closed.
        self.assertEqual(far.recv(1), b"")
        far.close()

    def test_a_session_that_nobody_wants_is_closed(self):
        near, far = socket.socketpair()
        self.cache.save_endpoint("python", "", near, ttl=60)
        session = self.cache.find_endpoint("python")
        self.assertIsInstance(session, Session)
        del session
        self.assertEqual(far.recv(1), b"")
        far.close()

    def test_what_is_refused_is_closed_and_the_cache_is_still_good(self):
        unconnected = socket.socket()
        self.assertRaises(Refused, self.cache.save_endpoint, "python", "", unconnected, 60)
        self.assertEqual(unconnected.fileno(), -1)
        self.assertIsNone(self.cache.find_endpoint("python"))

    def test_what_cannot_be_sent_is_not(self):
        near, far = socket.socketpair()
        self.assertRaises(ValueError, self.cache.save_endpoint, b"a\0b", b"", near)
        self.assertEqual(far.recv(1), b"")
        self.assertRaises(ValueError, self.cache.save_destination, "a", "b", "c", 0)
        self.assertRaises(ValueError, self.cache.find_endpoint, "\0")
        self.assertIsNone(self.cache.find_endpoint("python"))
        far.close()

    def test_labels_of_any_length_that_the_cache_takes(self):
        label = b"x" * 500000
        near, far = socket.socketpair()
        self.cache.save_endpoint(label, label, near, ttl=60)
        with self.cache.find_endpoint(label) as session:
            self.assertEqual(session.endpoint_property, label)
        far.close()


class WithScriptedServer(unittest.TestCase):
    """Servers that misbehave end in `Error`, and leak nothing."""

    def run_with(self, answers, ask, timeout=5.0):
        before = descriptors()
        with tempfile.TemporaryDirectory() as directory:
            path = directory + "/socket"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()

            def serve():
                client, _ = listener.accept()
                with client:
                    client.sendall(b"protocol\0connection_cache_protocol\0\0")
                    for answer, count in answers:
                        if not client.recv(1000):
                            return
                        pairs = [os.pipe() for _ in range(count)]
                        numbers = [number for pair in pairs for number in pair][:count]
                        socket.send_fds(client, [answer], numbers)
                        for number in [number for pair in pairs for number in pair]:
                            os.close(number)
                    if not answers:
                        client.recv(1000)

            server = threading.Thread(target=serve)
            server.start()
            with Cache(path, timeout=timeout) as cache:
                self.assertRaises(Error, ask, cache)
                # It is over for good.
                self.assertRaises(Error, ask, cache)
            server.join()
            listener.close()
        self.assertEqual(descriptors(), before, "descriptors leak")

    def find(self, cache):
        return cache.find_endpoint("x")

    def test_the_end(self):
        self.run_with([], self.find)

    def test_another_answer(self):
        self.run_with([(b"status\0000\0\0", 0)], self.find)
        self.run_with([(b"\0", 0)], self.find)

    def test_the_end_within_an_answer(self):
        self.run_with([(b"status\0000", 0)], self.find)

    def test_no_descriptor_or_too_many(self):
        found = b"status\0000\0property\0p\0\0"
        for count in [0, 2]:
            self.run_with([(found, 0), (b"\0", count)], self.find)

    def test_descriptors_that_nobody_asked_for(self):
        found = b"status\0000\0property\0p\0\0"
        self.run_with([(found, 1), (b"\0", 1)], self.find)

    def test_another_protocol(self):
        with tempfile.TemporaryDirectory() as directory:
            path = directory + "/socket"
            self.assertRaises(Error, Cache, path)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                self.assertRaises(Error, Cache, path, timeout=0.05)


if __name__ == "__main__":
    PATH = sys.argv.pop()
    unittest.main()
