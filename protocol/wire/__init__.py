"""The declarations of what is on the wire, and the cursor that takes them from bytes."""
