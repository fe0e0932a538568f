"Do the pages hold on other machines? `make elsewhere`"
