"""Quality against speed on a real model: what each engine and precision loses of its predictions, beside what it gains."""
