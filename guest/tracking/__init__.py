"""Track dirty pages: which pages of a RAM block changed since they were last sent.

`tracker` has the interface, `digests` compares contents, `marks` asks the kernel, which marks pages
as they are written: `userfaultfd` has it do so, `pagemap` reads the marks. `soft_dirty` reads marks
of another kind, of any process (`process_memory`), into a `table` from which workers take.
"""
