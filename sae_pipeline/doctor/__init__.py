"""Is this machine fit for the pipeline? Checks that say what they found and, if it is not well, what to do.

Import from the modules: `check`, `packages`, `machine`, `folders`, `reach`. Nothing is imported here, because a package
that is missing must not keep the doctor from saying so.
"""
