# Short names for ./check and ./lock, which work without make.
.PHONY: check install format lint types test lock

check:
	./check

install lint types test:
	./check $@

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock:
	./lock
