//! Fixtures shared by the tests: namespaces that go away with the test that made them.
